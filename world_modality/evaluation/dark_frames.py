"""What a policy does on recorded frames whose camera is taken to have been dark for a while."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.imagined_tokens import ImaginedTokens
from world_modality.policy.predictions import FrameErrors, predict, predicted_tokens
from world_modality.statistics.intervals import Interval
from world_modality.tokens.control_tokens import TokenControl

# The oracle first: where it does not gain over the held token, no prediction can.
DARK_INPUTS: Mapping[str, str] = {
    "true_token": "the true token (oracle)",
    "own_prediction": "its own prediction",
    "hold": "the last token seen",
}


@dataclass(frozen=True)
class DarkErrors:
    """The action error where the last frames up to the present one are dark.

    All at the same frames: those of the validation episodes that have a seen frame before the dark.

    Attributes:
        num_dark: number m of dark frames, the present one included.
        num_frames: at how many frames.
        seen: action MSE where nothing is dark.
        dark: action MSE by what the policy reads as world token; of an arm that reads none of its
            own, under `dark` alone.
        differences: of these, paired: `true_token − hold` and `own_prediction − hold`.
        tokens_right: share of the tokens read that are the true ones, by the same names.
    """

    num_dark: int
    num_frames: int
    seen: Interval
    dark: dict[str, Interval]
    differences: dict[str, Interval]
    tokens_right: dict[str, Interval]


def chooses_dark_input(run: OfflineRun) -> bool:
    """Tell whether the policy reads its own token and predicts it, so that there is a choice."""
    config = run.policy.config
    is_control = run.checkpoint.train_config.token_control != "none"
    return config.reads_world and config.predicts("token") and not is_control


def dark_errors(run: OfflineRun, num_dark: int, n_action_steps: int, seed: int) -> DarkErrors:
    """Measure the action error after `num_dark` dark frames.

    Args:
        run: of a policy that was trained with `observation_dropout`.
        num_dark: a multiple of `n_action_steps`, less than the longest validation episode has
            frames.
        n_action_steps: frames between the policy's own predictions in the dark.
        seed: of the bootstrap.
    """
    episodes = run.tensors.episodes
    place = run.val_frames - episodes.starts[episodes.of_frame[run.val_frames]]
    frames = run.val_frames[place >= num_dark]

    def errors(tokens: Int[np.ndarray, " M *RW"] | None, dark: int) -> FrameErrors:
        return predict(run.policy, run.tensors, frames, tokens, num_dark=dark)

    def mean(sums: Float[np.ndarray, " M"], counts: np.ndarray) -> Interval:
        return run.mean_over_frames(frames, sums, counts, seed)

    own = _control(run).evaluation_tokens(frames, run.policy.config.window)
    seen = errors(own, 0)
    counts = seen.valid.sum(axis=1)
    read: dict[str, Int[np.ndarray, " M *RW"]] = {}
    if chooses_dark_input(run):
        for name in DARK_INPUTS:
            read[name] = tokens_read(run, frames, num_dark, n_action_steps, name)
    inputs: Mapping[str, Int[np.ndarray, " M *RW"] | None] = {**read} if read else {"dark": own}
    sums = {
        name: errors(tokens, num_dark).squared_error.sum(axis=1) for name, tokens in inputs.items()
    }
    right = {name: tokens == read["true_token"] for name, tokens in read.items()}
    return DarkErrors(
        num_dark=num_dark,
        num_frames=len(frames),
        seen=mean(seen.squared_error.sum(axis=1), counts),
        dark={name: mean(one, counts) for name, one in sums.items()},
        differences={
            f"{name} − hold": mean(sums[name] - sums["hold"], counts)
            for name in ("true_token", "own_prediction")
            if name in sums
        },
        tokens_right={
            name: mean(one.reshape(len(frames), -1).mean(axis=1), np.ones(len(frames)))
            for name, one in right.items()
        },
    )


def tokens_read(
    run: OfflineRun,
    frames: Int[np.ndarray, " M"],
    num_dark: int,
    n_action_steps: int,
    name: str,
) -> Int[np.ndarray, " M *RW"]:
    """Return the world tokens that are read at frames after so many dark ones.

    As in closed loop: the policy is asked at the last seen frame and every `n_action_steps` frames
    from there on, in the dark with the tokens that it predicted before.

    Args:
        run: of a policy that reads and predicts tokens.
        frames: each with at least `num_dark` frames before it in its episode.
        num_dark: see `dark_errors`.
        n_action_steps: see `dark_errors`.
        name: what is read of the dark frames, of `DARK_INPUTS`.
    """
    recorded, window = run.recorded_tokens, run.policy.config.window
    if name == "true_token":
        return recorded.read_at(frames)
    last_seen = frames - num_dark
    starts = run.tensors.episodes.starts[run.tensors.episodes.of_frame[frames]]
    known: ImaginedTokens[np.ndarray] = ImaginedTokens()
    known.see(0, run.tokens[last_seen])

    def at(offset: int) -> Int[np.ndarray, " M *RW"]:
        """Return what is read so many frames after the last seen one."""
        read = [
            known.at(offset - lag)
            if lag < offset
            else run.tokens[np.maximum(last_seen + offset - lag, starts)]
            for lag in window.world_lags
        ]
        return read[0] if len(read) == 1 else np.stack(read, axis=1)

    if name == "own_prediction":
        for offset in range(0, num_dark, n_action_steps):
            found = predicted_tokens(
                run.policy, run.tensors, last_seen + offset, at(offset), num_dark=offset
            )
            known.predict(offset, window.future_stride, found.swapaxes(0, 1))
    return at(num_dark)


def _control(run: OfflineRun) -> TokenControl:
    trained = run.checkpoint.train_config
    train_frames = run.tensors.episodes.frames_of(run.train_ids)
    return TokenControl(trained.token_control, run.tensors, train_frames, trained.seed)
