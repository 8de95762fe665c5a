"""Models from the hub or a folder: safetensors only, no code, and errors with the next step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ...errors import InvalidArgument, MissingExtra
from ...whole import check_files, load_whole

HEAD = "head.safetensors"


def transformers_for(purpose: str) -> Any:
    """The package transformers; MissingExtra without it."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "rewards", purpose) from error
    return transformers


@dataclass(frozen=True)
class Place:
    """A folder, or a model on the hub at a revision; `makes` is the command that writes such one.

    Every failure of a method is an InvalidArgument with the next step.
    """

    model: str
    revision: str | None = None
    makes: str = ""

    def load(self, kind: Any, **options: Any) -> Any:
        """``kind.from_pretrained``: a configuration, a processor, a tokenizer."""

        def read() -> Any:
            if self._local:
                check_files(Path(self.model), kind)
            return kind.from_pretrained(self.model, **self._where, **options)

        return self._try(kind.__name__, read)

    def network(self, kind: Any, **options: Any) -> Any:
        """A network of transformers with all its weights from safetensors."""
        return self._try(
            kind.__name__, lambda: load_whole(kind, self.model, **self._where, **options)
        )

    def head(self, width: int) -> nn.Linear:
        """The linear head (`width` to 1) in head.safetensors, float32."""
        from transformers.utils import cached_file

        def read() -> nn.Linear:
            file = cached_file(
                self.model, HEAD, revision=self.revision, local_files_only=self._local
            )
            head = nn.Linear(width, 1)
            head.load_state_dict(load_file(file))
            return head.float()

        head: nn.Linear = self._try(HEAD, read)
        return head

    @property
    def _where(self) -> dict[str, Any]:
        place = {"revision": self.revision, "local_files_only": self._local}
        return {"trust_remote_code": False, **place}

    @property
    def _local(self) -> bool:
        return Path(self.model).exists()

    @property
    def _step(self) -> str:
        if self._local:
            made = f"; {self.makes} writes one" if self.makes else ""
            return f"the folder must hold weights in safetensors, configuration and processor{made}"
        return (
            "check the id's spelling and the network (HF_HUB_OFFLINE unset, a token for gated "
            "models), or download the model and give its folder"
        )

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except MemoryError as error:
            raise InvalidArgument(
                f"{self.model!r} does not fit into memory; use dtype=torch.bfloat16"
            ) from error
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InvalidArgument(
                f"cannot load {what} from {self.model!r}: {reason} ({self._step})"
            ) from error


CLIP_L = Place("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
CLIP_H = Place("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")
BERT = Place("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")
