"""`bench/aot.py` compiles for hardware that is not here, where the compiler's plugin is."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

AOT = Path(__file__).parents[2] / "bench" / "aot.py"
PLUGINS = {
    "h200": "jax_plugins.xla_cuda12",
    "v5e": "libtpu",
    "v5p": "libtpu",
    "v6e": "libtpu",
}


def compiled(target, folder, *arguments):
    """Exit code, rows and output of the bench in a process of its own: it must precede jax."""
    rows = folder / "rows.json"
    command = [sys.executable, str(AOT), "--target", target, "--json", str(rows), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    return done.returncode, json.loads(rows.read_text()) if rows.exists() else [], done.stdout


def installed(target):
    try:
        return importlib.util.find_spec(PLUGINS[target]) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("target", list(PLUGINS))
def test_every_kernel_compiles_at_its_smallest_shape(target, tmp_path):
    if not installed(target):
        pytest.skip(f"{PLUGINS[target]} is not installed: see the set-up in docs/plan.md")
    code, rows, output = compiled(target, tmp_path, "--ops", "gram_volume", "--only", "B1000")
    assert code == 0, output
    assert rows and not any("error" in row for row in rows)
    assert any(row["implementation"].startswith("pallas") for row in rows)
    if target == "h200":
        fused = [r for r in rows if r["implementation"].startswith("pallas")]
        assert any(row["wgmma"] > 0 for row in fused if row["dtype"] == "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("target", list(PLUGINS))
def test_every_program_compiles(target, tmp_path):
    if not installed(target):
        pytest.skip(f"{PLUGINS[target]} is not installed: see the set-up in docs/plan.md")
    code, rows, output = compiled(target, tmp_path)
    assert code == 0, output
    assert {row["op"].split(".")[0] for row in rows} == {"gram_volume", "lm_head", "shared_lora"}
    if target == "h200":
        (large,) = (
            row["temp_mib"] for row in rows
            if row["shape"].startswith("B32768") and row["implementation"].startswith("pallas"))
        assert large < 1024


def test_without_the_plugin_it_says_so(tmp_path):
    if installed("h200"):
        pytest.skip("the plugin is installed")
    code, rows, output = compiled("h200", tmp_path)
    assert code == 3 and not rows
    assert "no compiler for h200 here" in output
