"""The processor: tokenizer, image geometry and prompt in one object, saved beside every checkpoint."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import BatchFeature, ProcessorMixin

from dsocr.common.errors import blamed_on
from dsocr.common.hub import load_json_of
from dsocr.common.run_files import PROCESSOR_NAME
from dsocr.data.image_files import image_name, open_image
from dsocr.models.config import model_version, native_config
from dsocr.models.loading import load_raw_config
from dsocr.samples.batch import OcrSample, collate_samples
from dsocr.samples.geometry import PATCH_SIZE, ImageFeatures, image_geometry
from dsocr.samples.tokenizer import DEFAULT_PROMPTS, IMAGE_TOKEN, load_tokenizer, split_prompt


DEFAULT_MODE = "gundam"


class OcrProcessor(ProcessorMixin):
    """Tokenizer, image mode and prompt of one DeepSeek-OCR model.

    Args:
        tokenizer: A fast tokenizer with bos, eos and pad tokens and the token `<image>`.
        version: `"v1"`, `"v2"` or `"unlimited"`.
        image_mode: A mode of that version, see `dsocr.samples.geometry.MODES`.
        prompt: Text with `<image>` exactly once; `None` takes the version's default.
        size_divisor: Divides the sizes of the mode (tiny models).
        patch_size: Side of a patch of the vision tower, pixels.
        image_layout: `"original"`, `"pad"` or `"wrap"`, see `dsocr.samples.geometry.ImageGeometry`.

    Raises:
        ValueError: for a mode or prompt that does not fit, or a tokenizer without the needed tokens.

    Example:
        >>> processor = OcrProcessor.from_pretrained("deepseek-ai/DeepSeek-OCR", image_mode="base")  # doctest: +SKIP
        >>> batch = processor(images=["line.png"])  # doctest: +SKIP
        >>> text = processor.decode(model.generate(**batch)[0, batch["input_ids"].shape[1]:])  # doctest: +SKIP
    """

    def __init__(
        self,
        tokenizer=None,
        version: str = "v1",
        image_mode: str = DEFAULT_MODE,
        prompt: str | None = None,
        size_divisor: int = 1,
        patch_size: int = PATCH_SIZE,
        image_layout: str = "original",
        chat_template=None,
    ):
        super().__init__(tokenizer, chat_template=chat_template)
        self.geometry = image_geometry(
            version, image_mode, size_divisor=size_divisor, patch_size=patch_size, layout=image_layout
        )
        self.version = version
        self.image_mode = image_mode
        self.image_layout = image_layout
        self.prompt = DEFAULT_PROMPTS[version] if prompt is None else prompt
        self.size_divisor = size_divisor
        self.patch_size = patch_size
        self.image_token_id = tokenizer.get_vocab().get(IMAGE_TOKEN)
        absent = [name for name in ("bos_token", "eos_token", "pad_token") if getattr(tokenizer, name) is None]
        if self.image_token_id is None:
            absent.append(IMAGE_TOKEN)
        if absent:
            raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} has no {', '.join(absent)}.")
        before, after = split_prompt(self.prompt)
        self._before = [tokenizer.bos_token_id, *tokenizer.encode(before, add_special_tokens=False)]
        self._after = tokenizer.encode(after, add_special_tokens=False)
        # Decoding leaves special tokens out: a text with one could never be read back.
        special = {identity for identity, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._reserved = {self.image_token_id, *tokenizer.all_special_ids, *special}

    def to_dict(self) -> dict[str, Any]:
        fields = ("version", "image_mode", "image_layout", "prompt", "size_divisor", "patch_size")
        return {"processor_class": type(self).__name__, **{field: getattr(self, field) for field in fields}}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        image_mode: str | None = None,
        image_layout: str | None = None,
        prompt: str | None = None,
    ) -> "OcrProcessor":
        """Load a saved processor, or build one for an upstream checkpoint.

        Args:
            name_or_path: Hub id or local folder: an adapter or model folder of this project, or upstream's checkpoint.
            revision: Branch, tag or commit of a Hub id.
            image_mode: Replaces the saved one.
            image_layout: Replaces the saved one.
            prompt: Replaces the saved one.

        Raises:
            ValueError: when there is no tokenizer.json, or the version is unknown.
        """
        fields = load_json_of(name_or_path, PROCESSOR_NAME, revision)
        with blamed_on(f"{PROCESSOR_NAME}, config.json or the tokenizer of {name_or_path}"):
            if fields.pop("processor_class", None) != cls.__name__:
                version = model_version(native_config(load_raw_config(str(name_or_path), revision)))
                fields = {"version": version}
            replaced = {"image_mode": image_mode, "image_layout": image_layout, "prompt": prompt}
            fields |= {name: value for name, value in replaced.items() if value is not None}
            return cls(load_tokenizer(name_or_path, revision), **fields)

    def encode_answer(self, text: str) -> list[int]:
        """Encode an answer, with one eos.

        Raises:
            ValueError: when the text contains a control token (`<image>`, bos, eos, pad) or another special token of the
            tokenizer.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        reserved = self._reserved.intersection(ids)
        if reserved:
            tokens = ", ".join(self.tokenizer.convert_ids_to_tokens(sorted(reserved)))
            raise ValueError(f"the text holds {tokens}, which the model reserves: {text[:80]!r}")
        return [*ids, self.tokenizer.eos_token_id]

    def encode_prompt(self, n_image_tokens: int) -> list[int]:
        """Ids of bos, the prompt's text before the image, the image tokens, and the text after it."""
        return [*self._before, *[self.image_token_id] * n_image_tokens, *self._after]

    def count_prompt_tokens(self, width: int, height: int) -> int:
        """Length of the prompt for an image of this size, without cutting the image."""
        return len(self._before) + self.geometry.count_tokens(width, height) + len(self._after)

    def prepare(self, image: Any, text: str | None = None, features: ImageFeatures | None = None) -> OcrSample:
        """Prepare a sample from an image (see `open_image`) and, for training, its transcription.

        If features are given, the image is not opened.

        Raises:
            UnreadableImageError: as `open_image`.
            ValueError: the image would vanish in the global view, or the text holds a token that the model reserves; the
                message names the image.
        """
        name = image_name(image)
        try:
            views = features if features is not None else self.geometry.cut(open_image(image))
            prompt = self.encode_prompt(views.n_tokens)
            answer = [] if text is None else self.encode_answer(text)
        except ValueError as error:
            if name in str(error):
                raise
            raise ValueError(f"{name}: {error}") from error
        return OcrSample(prompt + answer, len(prompt), views, name)

    def __call__(self, images: list, dtype: torch.dtype = torch.float32) -> BatchFeature:
        """Prepare images as a left-padded batch for `model.generate`.

        Raises:
            As `prepare`.
        """
        images = images if isinstance(images, list | tuple) else [images]
        return BatchFeature(self.collate([self.prepare(image) for image in images], padding_side="left", dtype=dtype))

    def collate(
        self,
        samples: list[OcrSample],
        *,
        padding_side: Literal["left", "right"],
        dtype: torch.dtype,
    ) -> dict[str, Any]:
        """Call `dsocr.samples.batch.collate_samples` with this processor's pad token and model version."""
        return collate_samples(
            samples,
            pad_token_id=self.tokenizer.pad_token_id,
            padding_side=padding_side,
            dtype=dtype,
            with_grid=self.version != "v2",
        )

    def decode_answers(self, ids: torch.Tensor) -> list[str]:
        """Decode generated ids `[batch, new_tokens]`, without control tokens and surrounding white space."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
