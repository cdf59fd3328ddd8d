"""An episode's trace as a recording that rerun's viewer plays."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from world_modality.evaluation.episode_trace import EpisodeTrace
from world_modality.system.atomic import replacing
from world_modality.system.errors import InvalidInputError

APPLICATION = "world-modality-vla"
FRAME, TIME = "frame", "time"
_JPEG_QUALITY = 90

Images = Mapping[str, Iterable[UInt8[np.ndarray, "B H W 3"]]]
"""By camera, blocks of the images of all frames in a row."""


def write_recording(
    path: Path,
    trace: EpisodeTrace,
    images: Images,
    *,
    fps: float,
    action_names: Sequence[str],
    about: str,
) -> None:
    """Write the file; its timelines are `frame`, from 0, and `time`.

    Args:
        path: of the file, `.rrd`.
        trace: what is shown.
        images: decoded block by block, so that memory stays flat.
        fps: of the dataset.
        action_names: of the dimensions of an action.
        about: a text that stands beside it, as Markdown.

    Raises:
        InvalidInputError: rerun is not installed.
    """
    rerun = _rerun()
    with replacing(path) as partial:
        stream = rerun.RecordingStream(APPLICATION, recording_id=path.stem)
        stream.save(str(partial), default_blueprint=_blueprint(list(images)))
        stream.log("about", rerun.TextDocument(about, media_type="text/markdown"), static=True)
        for camera, blocks in images.items():
            for number, image in enumerate(one for block in blocks for one in block):
                stream.set_time(FRAME, sequence=number)
                stream.set_time(TIME, duration=number / fps)
                shown = rerun.Image(image).compress(jpeg_quality=_JPEG_QUALITY)
                stream.log(entity_path("images", camera), shown)
        for name, (numbers, values) in series(trace, action_names).items():
            path_of_series = entity_path(*name.split("/"))
            if name.startswith(("world/", "prediction/token/")):
                # Numbers of tokens lie beside each other without meaning it: no line joins them.
                stream.log(path_of_series, rerun.SeriesPoints(), static=True)
            stream.send_columns(
                path_of_series,
                indexes=[
                    rerun.TimeColumn(FRAME, sequence=numbers),
                    rerun.TimeColumn(TIME, duration=numbers / fps),
                ],
                columns=rerun.Scalars.columns(scalars=values.astype(np.float64)),
            )
        stream.flush()
        stream.disconnect()


def series(
    trace: EpisodeTrace, action_names: Sequence[str]
) -> dict[str, tuple[Shaped[np.ndarray, " m"], Shaped[np.ndarray, " m"]]]:
    """Return each number that is shown over time, by name: the frames, and its values there."""
    all_frames = np.arange(len(trace.frames))
    found = {
        f"world/token{slot}": (all_frames, values) for slot, values in _by_slot(trace.world_tokens)
    }
    if trace.prediction is not None:
        inside = np.flatnonzero(trace.prediction.recorded.reshape(len(all_frames), -1)[:, 0] >= 0)
        columns = {
            "token/top": (all_frames, trace.prediction.top),
            "token/recorded": (inside, trace.prediction.recorded[inside]),
            "probability/top": (all_frames, trace.prediction.probability),
            "probability/recorded": (inside, trace.prediction.probability_of_recorded[inside]),
        }
        for name, (numbers, columns_of_slots) in columns.items():
            for slot, values in _by_slot(columns_of_slots):
                found[f"prediction/{name}{slot}"] = (numbers, values)
    for kind, shares in trace.attention.by_kind.items():
        for layer, values in enumerate(shares.cpu().numpy().T):
            found[f"attention/{kind}/layer_{layer}"] = (all_frames, values)
    last_layer = trace.attention.world[:, -1].cpu().numpy().T
    if len(last_layer) > 1:
        for number, values in enumerate(last_layer):
            found[f"attention/of_world_tokens/token_{number}"] = (all_frames, values)
    for source, actions in (
        ("recorded", trace.recorded_actions),
        ("predicted", trace.predicted_actions),
    ):
        for name, values in zip(action_names, actions.T, strict=True):
            found[f"actions/{name}/{source}"] = (all_frames, values)
    return found


def _by_slot(values: Shaped[np.ndarray, " n *W"]) -> list[tuple[str, Shaped[np.ndarray, " n"]]]:
    """Return the columns of several tokens a frame with the ends of their names."""
    if values.ndim == 1:
        return [("", values)]
    return [(f"/slot_{slot}", column) for slot, column in enumerate(values.T)]


def entity_path(*parts: str) -> str:
    """Return the path of what is called so, with unusual characters marked as rerun wants it."""
    path: str = _rerun().new_entity_path(list(parts))
    return path


def _blueprint(cameras: Sequence[str]) -> Any:
    import rerun.blueprint as parts

    plots = [
        parts.TimeSeriesView(origin=origin, name=name)
        for origin, name in (
            ("world", "World token"),
            ("prediction/token", "Predicted and recorded world token"),
            ("prediction/probability", "Probability of either"),
            ("attention/world", "Attention of the action queries to the world token"),
            ("actions", "Actions"),
        )
    ]
    views = [
        parts.Spatial2DView(origin=entity_path("images", camera), name=camera) for camera in cameras
    ]
    about = parts.TextDocumentView(origin="about", name="About")
    return parts.Blueprint(parts.Horizontal(parts.Vertical(*views, about), parts.Vertical(*plots)))


def _rerun() -> Any:
    try:
        import rerun
    except ImportError as error:
        raise InvalidInputError(
            f"rerun cannot be imported ({error}), which writes the recording; "
            "pip install 'rerun-sdk>=0.26,<0.27'"
        ) from error
    return rerun
