"""The README's Python runs."""

import re
from pathlib import Path


def test_readme_python_runs() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["logits"].shape == (1, 5)  # type: ignore[attr-defined]
    assert [tuple(p.shape[1:]) for p in names["pyramid"]] == [  # type: ignore[attr-defined]
        (96, 63, 47), (192, 32, 24), (384, 16, 12), (768, 8, 6)
    ]  # fmt: skip
