"""Tiny random Qwen vision-language models, saved as a local download is."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.chat_server import GOOD_ANSWER

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEXT_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
VISION_SIZES: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
}


def images_for(seed: int, count: int = 2, size: int = 56) -> tuple[np.ndarray, ...]:
    """Draw pictures."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count))


def save_tokenizer(folder: Path) -> Any:
    """Train a byte-level BPE tokenizer with Qwen's special tokens, save and load it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([GOOD_ANSWER, "push the block to the goal"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
    fast.image_token, fast.video_token = "<|image_pad|>", "<|video_pad|>"
    fast.save_pretrained(folder)
    return fast


def save_qwen_vl(folder: Path, family: str, seed: int = 0) -> Path:
    """Save a tiny random `qwen3-vl` or `qwen2.5-vl` with its processor."""
    import torch
    from transformers import Qwen2TokenizerFast

    save_tokenizer(folder)
    tokenizer = Qwen2TokenizerFast.from_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    text = {
        **TEXT_SIZES,
        "vocab_size": len(tokenizer),
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    shared = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    torch.manual_seed(seed)
    parts = _qwen3 if family == "qwen3-vl" else _qwen2_5
    model, processor = parts(text, shared, tokenizer)
    # A fresh model's weights are so small that its answers hardly depend on what it sees.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _qwen3(text: dict[str, Any], shared: dict[str, Any], tokenizer: Any) -> tuple[Any, Any]:
    import transformers as tf

    rope = {"rope_type": "default", "mrope_section": [4, 2, 2]}
    vision = {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = tf.Qwen3VLConfig(
        text_config={**text, "head_dim": 16, "rope_scaling": rope},
        vision_config={**VISION_SIZES, **vision},
        **shared,
    )
    processor = tf.Qwen3VLProcessor(
        image_processor=tf.Qwen2VLImageProcessorFast(
            patch_size=16, min_pixels=32 * 32, max_pixels=64 * 64
        ),
        tokenizer=tokenizer,
        video_processor=tf.Qwen3VLVideoProcessor(patch_size=16),
        chat_template=CHAT_TEMPLATE,
    )
    return tf.Qwen3VLForConditionalGeneration(config), processor


def _qwen2_5(text: dict[str, Any], shared: dict[str, Any], tokenizer: Any) -> tuple[Any, Any]:
    import transformers as tf

    rope = {"type": "mrope", "mrope_section": [4, 2, 2]}
    vision = {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    config = tf.Qwen2_5_VLConfig(
        text_config={**text, "rope_scaling": rope},
        vision_config={**VISION_SIZES, **vision},
        **shared,
    )
    processor = tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessorFast(
            patch_size=14, min_pixels=28 * 28, max_pixels=56 * 56
        ),
        tokenizer=tokenizer,
        video_processor=tf.Qwen2VLVideoProcessor(patch_size=14),
        chat_template=CHAT_TEMPLATE,
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor
