"""From observations to the inputs of a vision-language model, for any `transformers` processor."""

import hashlib
import json
import warnings
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from deas_vla.data.contract import Camera
from deas_vla.data.observation import Observation
from deas_vla.errors import UserError

IMAGES = "pixel_values"


class PromptProcessor:
    """Turns images and instructions into model inputs; the prompt is "one image per camera, then the instruction".

    The real processor writes every distinct prompt once, with blank images of the cameras' size: what it returns
    beside the pixels depends on the text and on image sizes only, and is kept. Every prompt is padded on the right
    to one length. Pixels go through plain tensor operations if these reproduce the real image processor on a probe
    (no resizing, no splitting), else through the real image processor, which is several times slower: with a warning.

    Args:
        processor: a `transformers` processor with an image processor and a tokenizer.
        cameras: the cameras, in order.
        accepted: names of the model's inputs; the processor's other outputs are dropped.
        max_instruction_tokens: room for the instruction.
        image_token_id: the token that stands for a piece of an image.
    """

    def __init__(
        self,
        processor,
        cameras: tuple[Camera, ...],
        accepted: set[str],
        max_instruction_tokens: int,
        image_token_id: int,
    ) -> None:
        self.processor, self.cameras, self.accepted = processor, cameras, accepted
        self.max_instruction_tokens, self.image_token_id = max_instruction_tokens, image_token_id
        if hasattr(processor.image_processor, "do_image_splitting"):
            # One tile a camera: the tokens of a camera then form one grid.
            processor.image_processor.do_image_splitting = False
        self._prompts: dict[str, dict[str, Tensor]] = {}
        self._length = self._write("")["input_ids"].shape[1] + max_instruction_tokens
        self._scale, self._offset, self._leading = self._probe()
        if not self.fast:
            sizes = ", ".join(f"{camera.name} {camera.height}x{camera.width}" for camera in cameras)
            warnings.warn(
                f"images ({sizes}) go through {type(processor.image_processor).__name__} on the CPU, which is slow: it "
                "resizes, splits or packs them; cameras of the backbone's own image size avoid it",
                stacklevel=2,
            )
        self.camera_index = self._find_cameras()

    def __call__(self, observation: Observation) -> dict[str, Tensor]:
        """Model inputs for B observations; every tensor's first dimension is a multiple of B."""
        images = torch.stack([observation.images[camera.name] for camera in self.cameras], 1)
        return {**self._texts(tuple(observation.instruction)), IMAGES: self._pixels(images)}

    @property
    def fast(self) -> bool:
        """Whether pixels bypass the real image processor."""
        return self._scale is not None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides how text and pixels become inputs."""
        tokenizer = self.processor.tokenizer
        fast = tokenizer.is_fast
        text = tokenizer.backend_tokenizer.to_str() if fast else json.dumps(tokenizer.get_vocab())
        pixels = self.processor.image_processor.to_json_string()
        settings = [text, pixels, str(self._length), self._render(""), str([str(c) for c in self.cameras])]
        return hashlib.sha256("\0".join(settings).encode()).hexdigest()

    def real_pixels(self, images: Tensor) -> Tensor:
        """(B, C, h, w, 3) uint8 through the real image processor."""
        nested = [list(sample) for sample in images.cpu().permute(0, 1, 4, 2, 3)]
        return self.processor.image_processor(images=nested, return_tensors="pt")[IMAGES]

    # ---- text ----------------------------------------------------------------------------------------------

    def _render(self, instruction: str) -> str:
        count = len(self.cameras)
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}] * count + [{"type": "text", "text": instruction}]
            return self.processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=False
            )
        image_token = getattr(self.processor, "image_token", None) or self.processor.tokenizer.image_token
        return image_token * count + instruction

    def _write(self, instruction: str) -> dict[str, Tensor]:
        """What the real processor makes of one prompt, without the pixels."""
        blank = [torch.zeros(3, camera.height, camera.width, dtype=torch.uint8) for camera in self.cameras]
        extra = {"return_mm_token_type_ids": True} if "mm_token_type_ids" in self.accepted else {}
        made = self.processor(text=[self._render(instruction)], images=[blank], return_tensors="pt", **extra)
        return {name: value for name, value in made.items() if name in self.accepted and name != IMAGES}

    def _prompt(self, instruction: str) -> dict[str, Tensor]:
        """One padded prompt."""
        if instruction not in self._prompts:
            made = self._write(instruction)
            length = made["input_ids"].shape[1]
            if length > self._length:
                needed = length - self._length + self.max_instruction_tokens
                raise UserError(
                    f"the instruction {instruction!r} takes {needed} tokens, and there is room for "
                    f"{self.max_instruction_tokens}; raise max_instruction_tokens"
                )
            pad_token = self.processor.tokenizer.pad_token_id or 0
            for name, value in made.items():
                if value.dim() == 2 and value.shape == (1, length) and not value.is_floating_point():
                    fill = pad_token if name == "input_ids" else 0
                    made[name] = F.pad(value, (0, self._length - length), value=fill)
            self._prompts[instruction] = made
        return self._prompts[instruction]

    def _texts(self, instructions: tuple[str, ...]) -> dict[str, Tensor]:
        """The padded prompts of a batch, one instruction a sample."""
        if len(set(instructions)) > 1:
            prompts = [self._prompt(instruction) for instruction in instructions]
            return {name: torch.cat([prompt[name] for prompt in prompts]) for name in prompts[0]}
        prompt = self._prompt(instructions[0])
        return {n: v.repeat(len(instructions), *[1] * (v.dim() - 1)) for n, v in prompt.items()}

    def _find_cameras(self) -> Tensor:
        """(L,) which camera a token belongs to, or -1."""
        image = self._prompt("")["input_ids"][0] == self.image_token_id
        tokens, count = int(image.sum()), len(self.cameras)
        side = round((tokens // count) ** 0.5)
        if tokens == 0 or side * side * count != tokens:
            raise UserError(
                f"this backbone makes {tokens} tokens of {count} cameras, which is no square grid a camera; "
                "use square camera images, or another backbone"
            )
        camera = torch.full(image.shape, -1)
        camera[image] = torch.arange(count).repeat_interleave(side * side)
        return camera

    # ---- pixels --------------------------------------------------------------------------------------------

    def _pixels(self, images: Tensor) -> Tensor:
        if not self.fast:
            return self.real_pixels(images).to(images.device)
        # Made contiguous while they are bytes: convolutions would copy strided floats, at four times the size.
        pixels = images.permute(0, 1, 4, 2, 3).contiguous().float()
        scaled = torch.addcmul(self._offset.to(images.device), pixels, self._scale.to(images.device))
        return scaled if self._leading == 2 else scaled.flatten(0, 1)

    def _probe(self) -> tuple[Tensor | None, Tensor | None, int]:
        """Scale, offset and number of leading dimensions of the pixels, if the processor only normalises them."""
        sizes = {(camera.height, camera.width) for camera in self.cameras}
        if len(sizes) > 1:
            return None, None, 0
        height, width = sizes.pop()
        generator = torch.Generator().manual_seed(0)
        shape = (2, len(self.cameras), height, width, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        made = self.real_pixels(images)
        plain = images.permute(0, 1, 4, 2, 3).float()
        if made.shape not in (plain.shape, plain.flatten(0, 1).shape):
            return None, None, 0
        # A straight line through the darkest and the brightest pixel of each colour, checked on all others.
        x, y = plain.reshape(-1, 3, height * width), made.float().reshape(-1, 3, height * width)
        x, y = x.transpose(0, 1).flatten(1).double(), y.transpose(0, 1).flatten(1).double()
        low, high = x.argmin(1, keepdim=True), x.argmax(1, keepdim=True)
        slope = (y.gather(1, high) - y.gather(1, low)) / (x.gather(1, high) - x.gather(1, low))
        offset = y.gather(1, low) - slope * x.gather(1, low)
        if not torch.allclose(slope * x + offset, y, atol=1e-5):
            return None, None, 0
        return slope.float().view(3, 1, 1), offset.float().view(3, 1, 1), made.dim() - 3
