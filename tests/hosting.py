"""A loopback Hub that hosts Spaces, and what is shown there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from services.hub_server import serving
from services.spaces import Spaces

SAMPLES = [[[(row * column + number) % 17 for column in range(8)] for row in range(8)] for number in range(5)]


@contextmanager
def hub(root: Path, *granted: str, refusal: int = 402) -> Iterator[tuple[Spaces, HfApi]]:
    spaces = Spaces(root, set(granted), refusal)
    with serving(spaces) as url:
        try:
            yield spaces, HfApi(endpoint=url, token="hf_of_a_test")
        finally:
            spaces.stop()
