"""docs/explanation/lifecycle.md says the same as the table of transitions."""

import re
from pathlib import Path

import pytest

from scheduler.domain.errors import Internal
from scheduler.domain.states import FINAL_STATE, TERMINAL, TRANSITIONS, AttemptOutcome, JobState, check_transition

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "lifecycle.md"


def test_the_page_has_every_step_with_its_reason_and_no_other() -> None:
    rows = re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    told = {(before, after): why for before, after, why in rows}
    assert told == {
        (before.name, after.name): why for before, steps in TRANSITIONS.items() for after, why in steps.items()
    }


def test_the_picture_has_every_step() -> None:
    drawn = set(re.findall(r"^    ([A-Z_]+) --> ([A-Z_]+)", PAGE.read_text(), re.MULTILINE))
    assert drawn == {(before.name, after.name) for before, steps in TRANSITIONS.items() for after in steps}


@pytest.mark.parametrize("before", JobState)
@pytest.mark.parametrize("after", JobState)
def test_only_steps_of_the_table_are_allowed(before: JobState, after: JobState) -> None:
    if after in TRANSITIONS[before]:
        check_transition(before, after)
    else:
        with pytest.raises(Internal, match="illegal"):
            check_transition(before, after)


def test_final_states_are_final_and_every_outcome_leads_to_one() -> None:
    assert all(not TRANSITIONS[state] for state in TERMINAL)
    assert set(FINAL_STATE) == set(AttemptOutcome)
    assert set(FINAL_STATE.values()) <= TERMINAL
