"""The facts file: up to date, readable without torch, shown in 120 columns."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from core import facts_table, measure, registry, table
from core.errors import InputError, SettingError, UnknownNameError
from core.mixers.scan import selective_scan

REGENERATE = "regenerate with: .venv/bin/python -m core.table --write [FAMILY ...]"


def stored():
    return json.loads(table.FILE.read_text(encoding="utf-8"))["families"]


def test_every_family_is_in_the_file_and_no_other():
    assert sorted(stored()) == sorted(registry.families()), REGENERATE


@pytest.mark.parametrize("name", registry.families())
def test_the_file_is_what_the_code_says(name):
    """Settings of every variant; parameters, MACs and pyramid of the first (of all under the slow mark)."""
    found = table.differences({name: stored().get(name, {"variants": {}})}, table.measured([name], quick=True))
    assert not found, f"{found}; {REGENERATE}"


@pytest.mark.slow
def test_every_count_is_what_the_code_says():
    assert table.check() == [], REGENERATE


def test_the_readme_shows_the_file():
    page = table.README.read_text(encoding="utf-8")
    assert table.readme(page, table.load()) == page, REGENERATE


def test_counts_of_a_known_network():
    row = table.find("swin/tiny", table.load())
    assert row.parameters == 28_288_354  # card swin
    assert row.macs == pytest.approx(4.5e9, rel=0.01)  # published: 4.5 G
    assert (row.channels, row.strides, row.top1) == ((96, 192, 384, 768), (4, 8, 16, 32), 81.2)
    assert row.settings["window"] == (7, "side in tokens")
    assert table.find("swin/base", table.load()).settings["depths"][0] == [2, 2, 18, 2]


def test_difference_is_told():
    new = stored()
    old = json.loads(json.dumps(new))
    old["swin"]["variants"]["tiny"]["macs"] += 1
    old["swin"]["licence"] = "other"
    del old["swin"]["variants"]["small"]
    del old["resnet"]
    old["gone"] = new["swin"]
    assert table.differences(old, new) == [
        "resnet: not in the file",
        "gone: in the file, but no such family",
        "swin: licence changed",
        "swin/small: only in the code",
        f"swin/tiny: macs is {new['swin']['variants']['tiny']['macs']}, the file says "
        f"{old['swin']['variants']['tiny']['macs']}",
    ]
    assert table.differences(new, new) == []


def test_the_list_fits_120_columns():
    lines = table.text(table.load(), 120).splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) == 1 + len(table.load())
    assert max(map(len, table.text(table.load(), 90).splitlines())) <= 90


@pytest.mark.parametrize(("pattern", "name"), [("swin/*_384", "swin/base_384"), ("TINY_c2", "swin/tiny_c24")])
def test_select(pattern, name):
    found = [r.name for r in table.select(table.load(), pattern)]
    assert name in found
    assert "resnet/50" not in found


def test_wrong_names_get_near_ones():
    rows = table.load()
    with pytest.raises(UnknownNameError, match=r"no backbone family named 'swn'; did you mean .*swin"):
        table.find("swn/tiny", rows)
    with pytest.raises(UnknownNameError, match=r"no swin variant named 'swin/tinny'; did you mean swin/tiny"):
        table.find("swin/tinny", rows)
    with pytest.raises(InputError, match=r"^no model matches 'swinn'; did you mean swin"):
        table.select(rows, "swinn")


def test_readme_table_goes_between_its_marks():
    begin, end = table.MARKS
    page = table.readme(f"before\n{begin}\nold\n{end}\nafter\n", table.load()[:1])
    assert page.startswith(f"before\n{begin}\n| model |")
    assert page.endswith(f"\n{end}\nafter\n")
    assert "old" not in page
    with pytest.raises(InputError, match="models:begin"):
        table.readme("no marks", table.load())


def test_write_and_check(tmp_path: Path, monkeypatch, capsys):
    """One family written, then found good; then spoilt and found out, with the command that mends it."""
    monkeypatch.setattr(table, "FILE", tmp_path / "models.json")
    monkeypatch.setattr(table, "README", tmp_path / "README.md")
    monkeypatch.setattr(registry, "families", lambda: ("resnet",))
    assert table.main(["--write", "resnet"]) == 0
    assert table.main(["--check", "--quick"]) == 0
    table.FILE.write_text(table.FILE.read_text().replace('"parameters": ', '"parameters": 1', 1))
    assert table.main(["--check", "--quick"]) == 1
    said = capsys.readouterr().err
    assert "models.json: resnet/" in said
    assert "to regenerate: python -m core.table --write" in said
    assert table.main(["--write", "resnt"]) == 2


def test_facts_of_a_variant_that_is_not_there(monkeypatch):
    module = registry.family("resnet")
    monkeypatch.setattr(module, "VARIANTS", {"other": next(iter(module.VARIANTS.values()))})
    with pytest.raises(SettingError, match=r"^resnet: FACTS name a variant"):
        facts_table.family("resnet", quick=True)


def test_the_scan_is_counted():
    """9 B D L N multiply-accumulates, which torch's counter does not see."""

    class Scan(nn.Module):
        def __init__(self):
            super().__init__()
            self.A = nn.Parameter(-torch.ones(8, 4))

        def forward(self, image):
            u = image.flatten(2)  # (B, D, L)
            return selective_scan(u, torch.ones_like(u), self.A, u[:, :4], u[:, :4])

    for device in ("cpu", "meta"):
        assert measure.macs(Scan().to(device), (2, 8, 3, 5)) == 9 * 2 * 8 * 15 * 4


def test_macs_of_known_layers():
    assert measure.macs(nn.Conv2d(3, 8, 3, padding=1), (2, 3, 10, 10)) == 2 * 8 * 3 * 9 * 100
    with torch.device("meta"):
        layer = nn.Linear(16, 4)
    assert measure.macs(layer, (1, 2, 5, 16)) == 10 * 16 * 4
    assert measure.macs(layer, (1, 2, 5, 16), train=True) == 2 * 10 * 16 * 4  # the image asks for no gradient
