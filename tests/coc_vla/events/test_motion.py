import pytest

from coc_vla.events.motion import GripperEvent, HandAxes, motion_phases
from tests.fixtures.coc import motion_with_stops
from world_modality.system.errors import InvalidInputError


def test_phases_cover_the_episode_and_name_its_directions():
    phases = motion_phases(motion_with_stops(GripperEvent(85, "close")))
    moving = [phase.direction for phase in phases if phase.direction != "still"]
    assert moving == ["across", "up", "across", "across"]
    assert [phase.start for phase in phases[1:]] == [phase.end for phase in phases[:-1]]
    assert (phases[0].start, phases[-1].end) == (0, 120)
    assert any(phase.start == 85 for phase in phases)


@pytest.mark.parametrize("axes", [("left", "right"), ("back", "back"), ("forward", "back")])
def test_axes_that_span_no_plane_are_refused(axes):
    with pytest.raises(InvalidInputError, match="--position_axes"):
        HandAxes(*axes)
