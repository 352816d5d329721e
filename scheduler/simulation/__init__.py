"""The control plane's own cycle on a virtual clock: what a policy, a fleet or a load would have done.

``world.Simulation`` drives the very engine that serves (``scheduler.service.engine``): jobs are submitted, planned, granted, evicted and
metered by the same code. Only time, ids and the machines are made up.
"""
