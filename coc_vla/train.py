"""Train a policy with a second head that explains: actions, world tokens and a causal trace.

`L = L_action + λ·L_world + α·L_coc`, by the trainer of the other arms.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from coc_vla.head.decoder_config import DecoderConfig, TextContext, TrunkView
from coc_vla.head.tokenizer import TRAINED, TextTokenizer
from coc_vla.labels.record import GENERATION_COMMAND
from world_modality.arms import ModelType
from world_modality.cache.contract import sha256_of_file
from world_modality.policy.config import TrainConfig
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError, require_at_least

if TYPE_CHECKING:
    from coc_vla.head.text_head import EpisodeTraces, ExplainingHead
    from world_modality.policy.network import HeadSite
    from world_modality.training.single import TrainResult


@dataclass(frozen=True, kw_only=True)
class CocTrainConfig(TrainConfig):
    """Train one arm with an explaining head on a precomputed cache and a file of labels."""

    may_change: ClassVar[frozenset[str]] = TrainConfig.may_change | {"labels_jsonl"}

    model_type: ModelType = "C"
    """Arm of the policy that the head is trained with."""
    labels_jsonl: Path
    """File of labels that `python -m coc_vla.coc_generation` wrote for this dataset."""
    coc_loss_weight: float = 0.2
    """Weight α of the text loss; with 0 the policy trains as without the head, bit for bit."""
    coc_samples_per_batch: int = 32
    """Frames of each batch whose text loss is computed; the decoder costs more than the policy."""
    text_context: TextContext = "trunk"
    """What the decoder reads: the trunk's LANG, WORLD_CUR and FUT positions, or LANG alone (the
    instruction-only control)."""
    text_tokenizer: str = TRAINED
    """trained fits byte-pair encoding to the training labels; any other value is the hub name or
    local folder of a tokenizer."""
    text_vocabulary: int = 1024
    """Largest vocabulary of a trained tokenizer, in tokens."""
    max_text_tokens: int = 256
    """Longest trace, in tokens."""
    text_width: int = 128
    """Width of the decoder."""
    text_layers: int = 2
    """Depth of the decoder."""
    text_heads: int = 4
    """Attention heads of the decoder."""
    text_dropout: float = 0.1
    """Dropout inside the decoder."""
    text_word_dropout: float = 0.1
    """Share of the preceding words that are hidden from the decoder in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("coc_loss_weight", self.coc_loss_weight, 0)
        if self.token_control != "none":
            raise InvalidInputError(
                f"--token_control {self.token_control} is for the arms alone; train it with "
                "train_baseline_b.py or train_model_c.py"
            )
        for name in ("coc_samples_per_batch", "text_vocabulary", "max_text_tokens", "text_width"):
            require_at_least(name, getattr(self, name), 1)


def run(config: CocTrainConfig) -> "TrainResult":
    """Train, or go on training, the two-head model.

    Raises:
        InvalidInputError: labels, cache, flags or an existing run do not fit.
        MissingFileError: the labels or the cache are missing.
    """
    from world_modality.training.single import run as train_policy

    return train_policy(config, lambda site: _build_head(config, site))


def _build_head(config: CocTrainConfig, site: "HeadSite") -> "ExplainingHead":
    from coc_vla.head.text_head import ExplainingHead, HeadRecord, read_traces, text_targets

    split, episodes = site.cache.manifest["split"], site.tensors.episodes
    view = TrunkView.of(site.policy_config, config.text_context)
    traces = read_traces(config.labels_jsonl, site.cache, episodes)
    train, held_out = traces.among(split["train"]), traces.among(split["val"])
    if not train:
        raise InvalidInputError(
            f"{traces.path} has no label of a training episode ({len(traces.steps)} labels, "
            f"{traces.num_errors} errors); label more episodes with {GENERATION_COMMAND} "
            "--resume …"
        )
    labels_sha256 = sha256_of_file(config.labels_jsonl)
    if site.stored is not None:
        stored = HeadRecord.from_dict(site.stored)
        if stored.labels_sha256 != labels_sha256:
            raise InvalidInputError(
                f"cannot resume {config.log_dir}: {config.labels_jsonl} is not the label file that "
                "the run was started with (its SHA-256 differs); give that one, another --log_dir, "
                "or --overwrite"
            )
        tokenizer = TextTokenizer(stored.tokenizer)
    elif config.text_tokenizer == TRAINED:
        tokenizer = TextTokenizer.train(list(train.values()), config.text_vocabulary)
    else:
        tokenizer = TextTokenizer.pretrained(config.text_tokenizer)
    decoder = DecoderConfig(
        view=view,
        vocabulary_size=tokenizer.vocabulary_size,
        marks=(tokenizer.why, tokenizer.step),
        max_tokens=config.max_text_tokens,
        d_model=config.text_width,
        n_layers=config.text_layers,
        n_heads=config.text_heads,
        dropout=config.text_dropout,
        word_dropout=config.text_word_dropout,
    )
    _print_header(config, traces, split, tokenizer)
    longest, device = config.max_text_tokens, site.tensors.device
    return ExplainingHead(
        HeadRecord(decoder, config.text_context, tokenizer.to_json(), labels_sha256),
        text_targets(train, episodes, tokenizer, longest, device),
        text_targets(held_out, episodes, tokenizer, longest, device),
        loss_weight=config.coc_loss_weight,
        samples_per_batch=config.coc_samples_per_batch,
        seed=config.seed,
    )


def _print_header(
    config: CocTrainConfig,
    traces: "EpisodeTraces",
    split: dict[str, Any],
    tokenizer: TextTokenizer,
) -> None:
    counts = {name: len(traces.among(split[name])) for name in ("train", "val")}
    print(
        f"labels: {counts['train']} of {len(split['train'])} training episodes, {counts['val']} of "
        f"{len(split['val'])} held-out ones ({traces.num_errors} errors, the others not labelled); "
        f"episodes without a label give no text loss; tokenizer {config.text_tokenizer}, "
        f"{tokenizer.vocabulary_size} tokens"
    )
    if config.coc_loss_weight == 0:
        print("--coc_loss_weight 0: the policy is trained alone, the decoder stays untrained")
    else:
        print(
            f"text loss on {config.coc_samples_per_batch} of {config.batch_size} frames of each "
            f"batch, decoder reads {config.text_context}"
        )


def main() -> None:
    """Run the stage from the command line."""
    run_cli(CocTrainConfig, run)


if __name__ == "__main__":
    main()
