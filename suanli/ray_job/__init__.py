"""The supervisor of a ray job: what a region's executor puts in front of the job's own command.

It is only a supervisor of processes, run with the job's rights inside the job's walls: ``plan`` decides, ``node`` holds one Ray node,
``meeting`` is how the ranks of a gang find each other, ``supervisor`` is the program. Ray itself is imported by none of them.
"""
