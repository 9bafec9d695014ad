"""No line of the tree runs what a file says: no pickles, eval, shells or remote code, but where a reason stands."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = ("gate", "techniques", "probes", "examples", "docs")
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
NAMES = {"eval", "exec", "compile", "__import__", "execfile"}
CALLS = {"os.system", "os.popen", "runpy.run_path", "runpy.run_module", "yaml.load", "yaml.unsafe_load"}

# file: what it does, and why it may. Nothing else may, and what is listed must still be there.
ALLOWED = {
    "gate/testing/files.py": {"exec_module": "gate check PATH::CLASS runs the file that the user names"},
    "gate/forks.py": {
        "import pickle": "reads what its own forked child sends over a private pipe",
        "pickle.loads": "the same",
        "pickle.dumps": "the child's side of it",
    },
    "gate/data/public/cifar.py": {
        "import pickle": "CIFAR-10 is published as pickles; its reader makes arrays and looks nothing else up",
        "pickle.UnpicklingError": "what it raises for the rest",
    },
}


def found_in(source: str) -> list[str]:
    """What a file does of all this, in order, by the text of a call or an import."""
    seen: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            seen += [f"import {a.name}" for a in node.names if a.name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            seen.append(f"import {node.module}")
        elif isinstance(node, ast.Call):
            seen += _of_call(node)
    return seen


def _of_call(node: ast.Call) -> list[str]:
    called = ast.unparse(node.func)
    options = {k.arg: k.value for k in node.keywords if k.arg}
    true = {name for name, value in options.items() if not _is(value, False)}
    last = called.rpartition(".")[2]
    if called in NAMES or called in CALLS or called.split(".")[0] in PICKLES:
        return [called]
    if last in ("exec_module", "load_module"):
        return [last]
    if called in ("torch.load", "torch.hub.load") and not _is(options.get("weights_only"), True):
        return [called]
    if last == "load" and "allow_pickle" in true:
        return [f"{called}(allow_pickle)"]
    if called.split(".")[0] == "subprocess" and "shell" in true:
        return [f"{called}(shell)"]
    return ["trust_remote_code"] if "trust_remote_code" in true else []


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_the_tree_does_none_of_it() -> None:
    files = [f for tree in TREES for f in sorted((ROOT / tree).rglob("*.py"))]
    assert len(files) > 150
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        found = set(found_in(file.read_text(encoding="utf-8")))
        assert found == set(ALLOWED.get(name, {})), f"{name}: {found}"


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import pickle", "import pickle"),
        ("from joblib import load", "import joblib"),
        ("pickle.loads(x)", "pickle.loads"),
        ("torch.load(f)", "torch.load"),
        ("torch.load(f, weights_only=False)", "torch.load"),
        ("torch.load(f, weights_only=safe)", "torch.load"),
        ("torch.hub.load(repo, model)", "torch.hub.load"),
        ("np.load(f, allow_pickle=True)", "np.load(allow_pickle)"),
        ("eval('1')", "eval"),
        ("exec(text)", "exec"),
        ("__import__(name)", "__import__"),
        ("os.system('ls')", "os.system"),
        ("subprocess.run(c, shell=True)", "subprocess.run(shell)"),
        ("subprocess.Popen(c, shell=wanted)", "subprocess.Popen(shell)"),
        ("yaml.load(text)", "yaml.load"),
        ("M.from_pretrained(f, trust_remote_code=True)", "trust_remote_code"),
        ("M.from_pretrained(f, trust_remote_code=asked)", "trust_remote_code"),
        ("spec.loader.exec_module(module)", "exec_module"),
    ],
)
def test_each_of_them_would_be_seen(source: str, seen: str) -> None:
    assert seen in found_in(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f, weights_only=True)",
        "model.eval()",
        "re.compile('a')",
        "ast.literal_eval(text)",
        "yaml.safe_load(text)",
        "subprocess.run(c, shell=False)",
        "M.from_pretrained(f, trust_remote_code=False)",
    ],
)
def test_what_is_harmless_is_not(source: str) -> None:
    assert not found_in(source)


def test_whatever_transformers_loads_is_told_that_no_remote_code_runs() -> None:
    """Auto classes ask on the terminal where they are not told: each is, on the spot or by a dictionary of options."""
    told = 0
    for tree in ("gate", "techniques", "probes"):
        for file in (ROOT / tree).rglob("*.py"):
            source = file.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source)):
                if (
                    isinstance(node, ast.Attribute)
                    and node.attr.startswith("Auto")
                    and "transformers" in source
                ):
                    assert '"trust_remote_code": False' in source, file
                    told += 1
    assert told >= 2


def test_a_picture_in_another_format_s_name_reaches_no_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands EPS to a program of its own, whatever the file is called."""
    from PIL import Image

    from gate.data.images import UnreadableError, read_image

    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'marker'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    file = tmp_path / "photo.png"
    Image.new("RGB", (16, 16)).save(file, format="EPS")
    with pytest.raises(UnreadableError):
        read_image(file)
    assert not (tmp_path / "marker").exists()
    with pytest.raises(OSError), Image.open(file) as opened:  # what it would have run
        opened.load()
    assert (tmp_path / "marker").exists()
