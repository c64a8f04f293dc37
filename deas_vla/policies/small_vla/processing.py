"""From observations to the inputs of a vision-language model, for any `transformers` processor."""

import hashlib
import json
import warnings
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from deas_vla.data.contract import Camera
from deas_vla.data.images import resized
from deas_vla.data.observation import Observation
from deas_vla.errors import UserError
from deas_vla.policies.small_vla.backbone import Backbone

IMAGES = "pixel_values"


class PromptProcessor:
    """Turns images and instructions into model inputs; the prompt is "one image per camera, then the instruction".

    The real processor writes every distinct prompt once, with blank images: what it returns beside the pixels depends
    on the text and on image sizes only, and is kept; outputs that the backbone does not take are dropped. Every prompt
    is padded on the right to one length. Pixels go through plain tensor operations if these reproduce the real image
    processor on a probe (no resizing, no splitting), else through the real one, which is several times slower: with a
    warning. `camera_index` is (L,) which camera a token belongs to, or -1.
    """

    def __init__(self, processor, cameras: tuple[Camera, ...], backbone: Backbone, max_instruction_tokens: int) -> None:
        self.processor, self.cameras, self.accepted = processor, cameras, backbone.accepted
        self.max_instruction_tokens = max_instruction_tokens
        sizes = ", ".join(f"{camera.name} {camera.height}x{camera.width}" for camera in cameras)
        if len({(camera.height, camera.width) for camera in cameras}) > 1:
            fix = "--policy.image_size=64 brings images to 64x64"
            raise UserError(f"small_vla needs cameras of one size, got {sizes}; {fix}")
        if hasattr(processor.image_processor, "do_image_splitting"):
            # One tile a camera: the tokens of a camera then form one grid.
            processor.image_processor.do_image_splitting = False
        self._prompts: dict[str, dict[str, Tensor]] = {}
        self._length = self._write("")["input_ids"].shape[1] + max_instruction_tokens
        self._line = self._probe()
        if not self.fast:
            warnings.warn(
                f"images ({sizes}) go through {type(processor.image_processor).__name__} on the CPU, which is slow: it "
                "resizes, splits or packs them; --policy.image_size= with the backbone's own image size avoids it",
                stacklevel=2,
            )
        self.camera_index = self._find_cameras(backbone.image_token_id)

    def __call__(self, observation: Observation) -> dict[str, Tensor]:
        """Model inputs for B observations; every tensor's first dimension is a multiple of B."""
        images = [resized(observation.images[camera.name], camera.height, camera.width) for camera in self.cameras]
        prompts = [self._prompt(instruction) for instruction in observation.instruction]
        texts = {name: torch.cat([prompt[name] for prompt in prompts]) for name in prompts[0]}
        return {**texts, IMAGES: self._pixels(torch.stack(images, 1))}

    @property
    def fast(self) -> bool:
        """Whether pixels bypass the real image processor."""
        return self._line is not None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides how text and pixels become inputs."""
        tokenizer = self.processor.tokenizer
        text = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab())
        pixels = self.processor.image_processor.to_json_string()
        settings = [text, pixels, str(self._length), self._render(""), str([str(c) for c in self.cameras])]
        return hashlib.sha256("\0".join(settings).encode()).hexdigest()

    def real_pixels(self, images: Tensor) -> Tensor:
        """(B, C, h, w, 3) uint8 through the real image processor."""
        nested = [list(sample) for sample in images.cpu().permute(0, 1, 4, 2, 3)]
        return self.processor.image_processor(images=nested, return_tensors="pt")[IMAGES]

    def _render(self, instruction: str) -> str:
        count = len(self.cameras)
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}] * count + [{"type": "text", "text": instruction}]
            return self.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
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
                room = f"there is room for {self.max_instruction_tokens}; raise max_instruction_tokens"
                raise UserError(f"the instruction {instruction!r} takes {needed} tokens, and {room}")
            for name, value in made.items():
                if value.shape == (1, length) and not value.is_floating_point():
                    fill = (self.processor.tokenizer.pad_token_id or 0) if name == "input_ids" else 0
                    made[name] = F.pad(value, (0, self._length - length), value=fill)
            self._prompts[instruction] = made
        return self._prompts[instruction]

    def _find_cameras(self, image_token_id: int) -> Tensor:
        image = self._prompt("")["input_ids"][0] == image_token_id
        tokens, count = int(image.sum()), len(self.cameras)
        side = round((tokens // count) ** 0.5)
        if tokens == 0 or side * side * count != tokens:
            problem = f"this backbone makes {tokens} tokens of {count} cameras, which is no square grid a camera"
            raise UserError(f"{problem}; use square camera images, or another backbone")
        camera = torch.full(image.shape, -1)
        camera[image] = torch.arange(count).repeat_interleave(side * side)
        return camera

    def _pixels(self, images: Tensor) -> Tensor:
        if not self.fast:
            return self.real_pixels(images).to(images.device)
        slope, offset, nested = self._line
        # Made contiguous while they are bytes: convolutions would copy strided floats, at four times the size.
        pixels = images.permute(0, 1, 4, 2, 3).contiguous().float()
        scaled = torch.addcmul(offset.to(images.device), pixels, slope.to(images.device))
        return scaled if nested else scaled.flatten(0, 1)

    def _probe(self) -> tuple[Tensor, Tensor, bool] | None:
        """Slope and offset of each colour, if the real image processor does nothing else; whether it keeps C apart."""
        shape = (3, len(self.cameras), self.cameras[0].height, self.cameras[0].width, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images[0], images[1] = 0, 255
        made, plain = self.real_pixels(images), images.permute(0, 1, 4, 2, 3)
        nested = made.shape == plain.shape
        if not nested and made.shape != plain.flatten(0, 1).shape:
            return None
        y = made.view(plain.shape).double()
        offset = y[0, 0, :, :1, :1]
        slope = (y[1, 0, :, :1, :1] - offset) / 255
        if not torch.allclose(slope * plain + offset, y, atol=1e-5):
            return None
        return slope.float(), offset.float(), nested
