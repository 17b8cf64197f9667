"""Which changes of the sources make a run another."""

from pathlib import Path

from mlecs_jax.methods import fedilora
from mlecs_jax.repro import code_version as code_version_module
from mlecs_jax.repro.code_version import code_version


def test_code_version_follows_what_computes_the_numbers(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text('"""Doc."""\nfrom mlecs_jax import train\n\n\ndef build(setting):\n'
                   '    return 1\n')
    first = code_version(str(own))
    other = tmp_path / "other.py"
    other.write_text('"""Others."""\n# why\nfrom mlecs_jax import train\ndef build(setting): '
                     'return 1\n')
    assert code_version(str(other)) == first  # comments and layout compute nothing
    third = tmp_path / "third.py"
    third.write_text("from mlecs_jax import train\ndef build(setting): return 2\n")
    assert code_version(str(third)) != first
    assert code_version("ml_ecs") != code_version("localpub") == code_version("standalone")


def test_code_version_follows_what_a_user_imports_of_their_own(tmp_path, monkeypatch):
    """By file or by module, relative or not, beside the method or elsewhere on Python's path; and
    in one process, since every run executes a user's file anew."""
    package, elsewhere = tmp_path / "mypackage", tmp_path / "elsewhere"
    (package / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (package / "__init__.py").write_text("")
    deep, helper = package / "deep" / "__init__.py", package / "helper.py"
    lib = elsewhere / "lib.py"
    deep.write_text("RANK = 1\n")
    (package / "method.py").write_text(
        "from mypackage.helper import scale\nfrom .deep import RANK\n"
        "from mlecs_jax.methods import fedilora\n\n\ndef build(setting):\n    return scale\n")
    helper.write_text("scale = 1\n")
    mine, sibling, lone = (tmp_path / name for name in ("mine.py", "sibling.py", "lone.py"))
    mine.write_text("import sibling\nimport lib\n\n\ndef build(setting):\n    return 1\n")
    sibling.write_text("import json\n")
    lone.write_text("import sibling\nfrom mlecs_jax import methods\n")
    lib.write_text("import numpy\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(elsewhere)
    module, file, top = "mypackage.method:build", f"{mine}", "lone:build"
    assert code_version(f"{file}:build") == code_version(file) != code_version(module)
    for entry in (module, top):
        reached = {path for path, _ in code_version_module._reached(entry)}
        assert Path(fedilora.__file__) in reached
    assert not any("numpy" in path.parts for path, _ in code_version_module._reached(file))
    for changed, entry in ((helper, module), (package / "method.py", module), (deep, module),
                           (sibling, file), (lib, file), (mine, file), (sibling, top)):
        known = code_version(entry)
        changed.write_text(changed.read_text() + f"MORE = '{entry}'\n")
        assert code_version(entry) != known, changed
