"""The commands: what they print, what they import, how they fail."""

import json
import os
import re
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest

from apps import __main__ as glocal
from core.errors import MissingExtraError

HEAVY = ("torch", "numpy", "timm", "torchvision", "PIL", "skimage")


def call(capsys, *tokens, app=None):
    """Exit code, standard output and standard error of one command."""
    code = glocal.run(app or glocal.build(), list(tokens))
    out = capsys.readouterr()
    return code, out.out, out.err


def one_sentence(err):
    assert err.startswith("glocal: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("tokens", [[], ["--help"], ["models", "list"], ["models", "--help"], ["datasets", "list"]])
def test_light_commands_import_nothing_heavy(tokens):
    code = (
        "import sys; from apps.__main__ import main; code = main(sys.argv[1:]); "
        f"heavy = [m for m in {HEAVY} if m in sys.modules]; assert not heavy, heavy; sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *tokens], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    # Processor time, not the clock: other tests run beside this one.
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 0.5, f"{spent:.2f} s"


def test_overview(capsys):
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    assert re.search(r"^models +\d+ \(families: \d+\) +glocal models list$", out, re.M)
    assert re.search(r"^datasets +\d+ +glocal datasets list$", out, re.M)
    assert "glocal --help" in out


def test_version_and_help(capsys):
    assert call(capsys, "--version")[:2] == (0, f"{glocal.core.__version__}\n")
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert "--debug" in out


def test_models_list(capsys):
    code, out, _ = call(capsys, "models", "list")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 120
    assert re.search(r"^swin/tiny +28\.3 M +4\.49 G +224 +4 8 16 32 +arXiv 2103\.14030 +81\.2 +MIT$", out, re.M)
    some = call(capsys, "models", "list", "swin/*_384")[1]
    assert some.count("swin/") == 2


def test_models_info(capsys):
    code, out, _ = call(capsys, "models", "info", "swin/tiny")
    assert code == 0
    for part in ("arXiv 2103.14030", "28,288,354", "96 192 384 768", "4 8 16 32", "81.2 %", "MIT", "published"):
        assert part in out
    assert re.search(r"^  window +7 +side in tokens$", out, re.M)


@pytest.mark.parametrize(
    ("tokens", "pattern"),
    [
        ("modles", r"no command named 'modles'; did you mean models\? \(\d+ known: .*models.*\)"),
        ("models lst", r"no command named 'lst'; did you mean list\? \(4 known: bench, export, info, list\)"),
        ("models list a b", r"'b' is one argument too many"),
        ("models list swinn", r"no model matches 'swinn'; did you mean swin.*\?"),
        ("models info", r'command "models info" parameter NAME requires an argument'),
        ("models info swn/tiny", r"no backbone family named 'swn'; did you mean .*swin.*"),
        ("models info swin/tinny", r"no swin variant named 'swin/tinny'; did you mean swin/tiny.*"),
        ("models info swin", r"no swin variant named 'swin/'.*"),
        ("models bench swin/tiny --sze 3", r"unknown option: --sze; did you mean --size\?"),
        ("models bench swin/tiny --batch x", r'invalid value for --batch: unable to convert "x" into int'),
        ("models bench swin/tiny --dtype float16", r'invalid value "float16" for --dtype; choose from: .*"bfloat16".*'),
        ("models bench swin/tiny --size 1 2 3", r"--size takes one side or rows and columns, got 3 numbers"),
        ("models bench swin/tiny --rounds 0", r"rounds is at least 1, got 0"),
        ("models bench swin/tiny --threads 0", r"threads is at least 1, got 0"),
        ("models bench swin/tiny --batch 0", r"batch is at least 1, got 0"),
        ("models bench swin/tiny --out nowhere/x.json", r"nowhere/x\.json: no such folder as nowhere"),
        (
            "models bench swin/tiny --against swin/tinny",
            r"no swin variant named 'swin/tinny'; did you mean swin/tiny.*",
        ),
        ("models bench swin/tiny --against timm:swin_tny", r"no timm model named 'swin_tny'; did you mean swin_.*"),
        ("models export swin/tiny x.pt", r"x\.pt: the file's name must end in \.onnx"),
        ("models export swin/tiny nowhere/x.onnx", r"nowhere/x\.onnx: no such folder as nowhere"),
        ("models export swin/tiny x.onnx --batch 0", r"--batch is at least 1, got 0"),
        ("models export swin/tiny x.onnx --weights none.pth", r"none\.pth: no such weights file"),
        ("datasets info imagnet-1k", r"no data set named 'imagnet-1k'; did you mean imagenet-1k.*"),
        ("datasets verify imagenet-1k nowhere", r"nowhere: no such folder"),
        ("datasets sample imagenet-1k full", r"full: exists and is not an empty folder; name a new one"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(tokens, pattern, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOCAL_DATASETS", str(glocal.HERE.parent / "datasets"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    code, out, err = call(capsys, *tokens.split())
    assert code == 2
    assert out == ""
    assert re.fullmatch(f"glocal: {pattern}\n", one_sentence(err)), err


def test_no_cards(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOCAL_DATASETS", str(tmp_path))
    code, _, err = call(capsys, "datasets", "list")
    assert code == 2
    assert "set GLOCAL_DATASETS to the folder that holds them" in one_sentence(err)
    assert "no cards found" in call(capsys)[1]


def test_datasets(capsys, tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.setenv("GLOCAL_DATASETS", str(glocal.HERE.parent / "datasets"))
    code, out, _ = call(capsys, "datasets", "list")
    assert code == 0
    assert re.search(r"^cifar-100-lt +CIFAR-100-LT .* 20,847 samples", out, re.M)
    assert max(map(len, out.splitlines()[:-1])) <= 120
    assert "1,281,167" in call(capsys, "datasets", "info", "imagenet-1k")[1]
    folder = tmp_path / "sample"
    code, out, _ = call(capsys, "datasets", "sample", "imagenet-1k", str(folder))
    assert code == 0
    assert "not pictures of ImageNet" in " ".join(out.split())
    code, out, _ = call(capsys, "datasets", "verify", "imagenet-1k", str(folder))
    assert code == 0
    assert "a sample of the layout" in out
    (folder / "train" / "stray.txt").touch()
    code, out, err = call(capsys, "datasets", "verify", "imagenet-1k", str(folder))
    assert (code, err) == (1, "")
    assert "unexpected: train/stray.txt" in out


@pytest.fixture
def domains(tmp_path, monkeypatch):
    """Two made domains beside each other, one of which cannot be imported."""
    package = f"made_{tmp_path.name}".replace("-", "_")
    folder = tmp_path / package
    plant = folder / "plant_counting"
    broken = folder / "broken"
    for path in (plant, broken, folder / "no_commands"):
        path.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (plant / "__init__.py").write_text('"""Counts of plants.\n\nMore."""\nprint("imported")\n')
    (plant / "cli.py").write_text(
        "from cyclopts import App\nfrom core.errors import InputError\n"
        'app = App(name="plant-counting")\ngroup = App(name="leaves")\napp.command(group)\n'
        '@app.command\ndef predict_all(file: str) -> int:\n    """Predict."""\n'
        '    print("predicted", file)\n    return 1\n'
        '@app.command(name="list")\ndef shown() -> None:\n    raise RuntimeError("lost\\nway")\n'
        "@app.command\ndef stop() -> None:\n    raise KeyboardInterrupt\n"
        "@app.command\ndef pipe() -> None:\n    raise FileNotFoundError(2, 'No such file or directory', 'a.tif')\n"
        "@app.command\ndef warn() -> None:\n    import warnings\n    warnings.warn('not ours')\n"
    )
    (broken / "__init__.py").write_text('"""Broken."""\n')
    (broken / "cli.py").write_text(
        "from core.errors import MissingExtraError\nraise MissingExtraError('monai', 'medical')\n"
    )
    (folder / "no_commands" / "__init__.py").write_text('"""Not a domain."""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    yield glocal.build(folder, package)
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        del sys.modules[name]


def test_domains_are_found_and_not_imported(domains, capsys):
    code, out, _ = call(capsys, app=domains)
    assert code == 0
    assert "imported" not in out
    assert re.search(r"^  plant-counting  Counts of plants\.\n +leaves predict-all list stop", out, re.M)
    assert "Not a domain" not in out
    assert "none yet" not in out
    code, out, _ = call(capsys, "--help", app=domains)
    assert code == 0
    assert re.search(r"plant-counting +Counts of plants\.", out)
    assert "Broken." in out
    assert "imported" not in out
    assert call(capsys, "plnt-counting", app=domains)[2].startswith(
        "glocal: no command named 'plnt-counting'; did you mean"
    )


def test_only_the_domain_that_is_called_is_imported(domains, capsys):
    code, out, _ = call(capsys, "plant-counting", "predict-all", "x.tif", app=domains)
    assert (code, out) == (1, "imported\npredicted x.tif\n")
    assert not [m for m in sys.modules if m.endswith(".broken.cli")]


def test_a_domain_without_its_extra(domains, capsys):
    code, _, err = call(capsys, "broken", "predict", app=domains)
    assert (code, err) == (2, f"glocal: {MissingExtraError('monai', 'medical')}\n")


def test_failures_exit_1_with_one_sentence(domains, capsys):
    code, _, err = call(capsys, "plant-counting", "list", app=domains)
    assert (code, err) == (1, "glocal: RuntimeError: lost way (the traceback: again with --debug)\n")
    code, _, err = call(capsys, "plant-counting", "pipe", app=domains)
    assert (code, err) == (1, "glocal: a.tif: no such file or directory\n")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_debug_anywhere_shows_the_traceback(domains, capsys, at):
    tokens = ["plant-counting", "list"]
    tokens.insert(at, "--debug")
    code, _, err = call(capsys, *tokens, app=domains)
    assert code == 1
    assert "Traceback" in err
    assert "raise RuntimeError" in err


def test_a_mistake_shows_a_traceback_only_with_debug(capsys):
    assert "Traceback" not in call(capsys, "models", "info", "swin/tinny")[2]
    code, _, err = call(capsys, "--debug", "models", "info", "swin/tinny")
    assert code == 2
    assert "Traceback" in err


def test_debug_after_two_dashes_is_an_argument():
    assert glocal._without_debug(["a", "--", "--debug"]) == (False, ["a", "--", "--debug"])
    assert glocal._without_debug(["a", "--debug", "--", "b"]) == (True, ["a", "--", "b"])


def test_ctrl_c_is_quiet(domains, capsys):
    code, _, err = call(capsys, "plant-counting", "stop", app=domains)
    assert (code, err) == (130, "")


def test_warnings_of_packages_are_for_debug(domains, capsys, monkeypatch):
    assert call(capsys, "plant-counting", "warn", app=domains)[2] == ""
    glocal._warn("table resized", UserWarning, str(glocal.HERE.parent / "core" / "cli.py"), 1)
    assert capsys.readouterr().err == "glocal: table resized\n"


def test_a_closed_pipe_is_quiet():
    script = "import sys; from apps.__main__ import main; sys.exit(main(['models', 'list']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_bench_command_writes(capsys, tmp_path, monkeypatch):
    """The command end to end with a document made beforehand; measuring is tested in test_bench_export."""
    from core import bench

    network = {"name": "swin/tiny", "parameters": 28e6, "macs": 4.5e9, "throughput": 80.0, "peak_memory": None,
               "latency": {"median": 0.0125, "low": 0.012, "high": 0.013}, "share": 0.7, "repeats": 4}  # fmt: skip
    result = {"batch": 1, "matrix_product_flops": 1e11, "networks": [network]}
    seen = []

    def made(name, against, batches, settings):
        seen.append((name, against, batches, settings))
        return {"name": name, "against": against, "difference": None, "weights": "one network", "results": [result],
                **bench.asdict(settings)}  # fmt: skip

    monkeypatch.setattr(bench, "benchmark", made)
    out = tmp_path / "x.json"
    tokens = ["models", "bench", "swin/tiny", "--batch", "1", "2", "--size", "64", "96", "--train", "--out", str(out)]
    code, printed, err = call(capsys, *tokens)
    assert (code, err) == (0, "")
    assert seen == [("swin/tiny", None, [1, 2], bench.Settings((64, 96), train=True))]
    assert re.search(r"^swin/tiny +1 +12\.50 +12\.00-13\.00 +80\.0 +- +28\.0 M +4\.50 G +0\.70$", printed, re.M)
    assert json.loads(out.read_text())["name"] == "swin/tiny"
    assert printed.endswith(f"written: {out}\n")


def test_export_needs_its_extra(capsys, tmp_path, monkeypatch):
    from core import export

    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else types.SimpleNamespace())
    code, _, err = call(capsys, "models", "export", "swin/tiny", str(tmp_path / "x.onnx"))
    assert (code, err) == (2, "glocal: onnxruntime is not installed; it comes with: pip install 'glocal[export]'\n")


def test_python_m_apps_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "apps", "modles"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(glocal.HERE).parent,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("glocal: no command named 'modles'")
