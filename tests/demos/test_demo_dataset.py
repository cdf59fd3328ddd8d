import os

from benchmarks.speed.harness.drawn import draw_dataset


def test_encoding_video_leaves_the_scheduling_of_the_process_alone(tmp_path):
    before = os.sched_getscheduler(0)
    draw_dataset(tmp_path / "drawn", 8, 64, "video")
    assert os.sched_getscheduler(0) == before
