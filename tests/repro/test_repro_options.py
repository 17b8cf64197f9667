"""What a command line asks for: seeds, grids of jobs, their keys, and what is refused."""

import pytest

from mlecs_jax.config import parse as parse_config
from mlecs_jax.errors import UserError
from mlecs_jax.repro import job as job_module
from mlecs_jax.repro.artefacts import ablation, regime, table1, table2
from mlecs_jax.repro.job import configuration_key
from mlecs_jax.repro.systems import SYSTEMS
from tests.repro.command_line import parsed


@pytest.mark.parametrize(("text", "seeds"), [
    ("3", (0, 1, 2)), ("10-12", (10, 11, 12)), ("7-7", (7,)), ("3,7", (3, 7)), ("1,0", (1, 0))])
def test_seeds_are_how_many_or_which(text, seeds):
    asked = parsed("table1", f"--seeds={text}", "--methods=ml_ecs", "--rho=0.5")
    assert asked.seeds == seeds and f"--seeds={text} " in asked.command
    jobs = table1.jobs(asked)
    assert [job.labels["seed"] for job in jobs[::2]] == list(seeds)
    assert {job.values["partition"]["seed"] for job in jobs} == set(seeds)


def test_grids_of_the_artefacts():
    asked = parsed("table1", "--seeds=5", "--data=real", "--splits=frame")
    jobs = table1.jobs(asked)
    assert len(jobs) == 12 * 3 * 5 and len({configuration_key(job, {}) for job in jobs}) == 180
    assert all(job.values["seed"] == job.values["partition"]["seed"] == job.labels["seed"]
               and job.values["data"]["source"] == "real" for job in jobs)
    assert {job.labels["seed"] for job in jobs[:36]} == {0}  # seed by seed
    assert asked.command == ("python -m mlecs_jax.repro mlecs table1 --preset=cpu --seeds=5 "
                             "--data=real --dataset=ur_fall --splits=frame")
    few = table2.jobs(parsed("table2", "--seeds=1", "--devices=3,50", "--splits=sequence"))
    assert [job.labels["num_clients"] for job in few] == [3] * 12 + [50] * 4
    without = {job.labels["variant"]: job.values["method"] for job in ablation.jobs(
        parsed("ablation", "--seeds=1", "--rho=0.5", "--splits=frame"))}
    assert not without["w/o MMA"]["mma"] and without["w/o MMA"]["ccl"] and without[""]["mma"]
    levers = ablation.jobs(parsed("ablation", "--seeds=1", "--rho=0.5", "--splits=sequence",
                                  "--methods=ml_ecs_plus", "--labelled=50,200",
                                  "--public=unlabelled,partly"))
    assert len(levers) == 4 * len(ablation.LEVERS) == len(
        {configuration_key(job, {}) for job in levers})
    assert all(parse_config(job.values) and not job.extras for job in levers)
    every = regime.jobs(parsed("regime", "--seeds=1", "--methods=ml_ecs"))
    assert {(j.labels["labelled"], regime.public_words(j.labels)) for j in every} == {
        (n, p) for n in (25, 50, 200, 0) for p in ("unlabelled", "10 % labelled", "labelled")}
    scarce = regime.jobs(parsed("regime", "--seeds=1", "--labelled=25", "--public=unlabelled"))
    assert {(j.labels["labelled"], regime.public_words(j.labels)) for j in scarce} == {
        (25, "unlabelled")}
    ten = regime.jobs(parsed("regime", "--seeds=1", "--labelled=25", "--public=partly",
                             "--devices=10", "--rho=0.5", "--methods=ml_ecs_plus,localpub"))
    assert {job.values["partition"]["num_clients"] for job in ten} == {10}
    assert {regime.words(job.labels) for job in ten} == {
        "10 devices, 25 labels, public 10 % labelled, ρ=.5"}
    # 12 methods × 3 kinds of labels × 80 cells, without those that differ in what nobody reads.
    whole = regime.jobs(parsed("regime", "--seeds=5"))
    assert len(whole) == 2880
    assert len({configuration_key(job, {}) for job in whole}) == 2880 - (9 + 5) * 80
    large = table2.jobs(parsed("table2", "--seeds=1", "--methods=ml_ecs"))
    assert {(j.labels["split"], j.labels["num_clients"] >= 50) for j in large} == {
        ("frame", False), ("sequence", False), ("sequence", True)}
    with pytest.raises(UserError, match="--public is 'some'"):
        parsed("regime", "--public=some")
    # Artefacts of one folder share runs: table 2's first cell is table 1's last.
    shared = {configuration_key(job, {}) for job in jobs} & {
        configuration_key(job, {}) for job in table2.jobs(parsed(
            "table2", "--seeds=1", "--devices=3", "--splits=frame", "--data=real"))}
    assert len(shared) == 12


@pytest.mark.parametrize(("method", "key"), [
    ("ml_ecs", "69e4ba086d"), ("ml_ecs_plus", "ee3fdd15b5"), ("standalone", "35e92eea98")])
def test_new_options_leave_the_keys_of_cached_runs(method, key):
    """The keys that the runs of docs/results.md were made under."""
    (job,) = table1.jobs(parsed("table1", "--seeds=1", "--data=real", "--splits=frame", "--rho=.5",
                                f"--methods={method}"))
    data = {"source": "real", "samples": 1, "sha256": "d"}
    assert configuration_key(job, data) == key
    job.values["plus"]["encoders"] = True
    assert configuration_key(job, data) != key


@pytest.mark.parametrize(("arguments", "message"), [
    (("table9",), "unknown artefact 'table9'"),
    (("table1", "--rho=many"), "--rho is 'many'"),
    (("table1", "--seeds=0"), "--seeds is '0'; give how many"),
    (("table1", "--seeds=9-5"), "--seeds is '9-5'; give how many"),
    (("table1", "--seeds=3,-7"), "--seeds is '3,-7'; give how many"),
    (("table1", "--seeds=few"), "--seeds is 'few'; give numbers"),
    (("table1", "strange"), "unknown argument 'strange'"),
    (("table1", "--config.lora.rnak=3"), "did you mean lora.rank"),
    (("table1", "--methods=ml_exc"), "unknown method 'ml_exc'"),
    (("table1", "--dataset=ur_fell"), "unknown config 'ur_fell'"),
    (("table1", "--name=a/b"), "--name is 'a/b'"),
    (("table1", "--devices=5"), "--devices means nothing to mlecs table1"),
    (("table1", "--config.partition.rho=0.3"), "use --rho"),
    (("table2", "--rho=.5,.8"), "takes one ρ"),
    (("comm", "--rho=.5,.8"), "takes one ρ"),
    (("ablation", "--methods=localpub"), "no variants of 'localpub'"),
    (("modality", "--labelled=50"), "--labelled means nothing to mlecs modality"),
    (("regime", "--public=partly", "--config.partition.server_labelled=0.3"), "use --public"),
    (("modality", "--methods=ml_exc"), "unknown method 'ml_exc'"),
    (("table2", "--methods=ml_exc"), "unknown method 'ml_exc'"),
    (("table1", "--methods=nowhere.py"), "there is no file nowhere.py"),
    (("table1", "--methods=json:dump_s"), "json has no function 'dump_s'"),
    (("table1", "--methods=ml_ecs,localpub,ml_ecs"), "has ml_ecs twice"),
    (("table1", "--rho=.5,0.50"), "has 0.5 twice"),
    (("table1", "--rho=,"), "--rho is ','; give numbers"),
    (("table1", "--methods="), "--methods is ''; give names"),
    (("ablation", "--config.method.mma=False"), "method.mma does nothing in mlecs ablation"),
    (("table1", "--dataset=mosi"), "--dataset=mosi is for mega"),
    (("table1", "--dataset=ur_fall:smoke"), "use --dataset=ur_fall --preset=smoke"),
    (("table1", "--splits=frame,foo"), "data.split is 'foo'"),
    (("table1", "--rho=.5,7"), "partition.rho is 7"),
    (("table2", "--devices=3,0"), "partition.num_clients is 0"),
    (("regime", "--labelled=25,-1"), "partition.labelled is -1"),
    (("modality", "--config.partition.mask_draw=stratified"), "mask_draw"),
    (("table1", "--config.data.source=simulated"), "use --data"),
])
def test_refusals(arguments, message):
    with pytest.raises(UserError, match=message):
        SYSTEMS["mlecs"][arguments[0] if arguments[0] in SYSTEMS["mlecs"] else "table1"].jobs(
            parsed(*arguments))


def test_the_command_that_is_shown_can_be_typed():
    asked = parsed("table1", "--seeds=2", "--config.model.prompt=What is it?")
    assert asked.command.endswith("--dataset=ur_fall '--config.model.prompt=What is it?'")


def test_a_configuration_without_a_group_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from mlecs_jax.configs import ur_fall\n\n\ndef get_config(variant):\n"
        "    config = ur_fall.get_config(variant)\n    del config.channel\n    return config\n")
    with pytest.raises(UserError, match="channel"):
        table1.jobs(parsed("table1", f"--dataset={tmp_path / 'mine.py'}"))


def test_what_auto_has_found_is_what_was_asked_for():
    """Runs of ``--data=real`` serve a sweep that asks for whatever there is, where that is real."""
    def key(asked, found):
        job = table1.jobs(parsed("table1", "--seeds=1", f"--data={asked}"))[0]
        return configuration_key(job, {"source": found, "samples": 1, "sha256": found})

    assert key("auto", "real") == key("real", "real") != key("auto", "simulated")
    assert key("auto", "simulated") == key("simulated", "simulated")


def test_a_file_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("def build(setting:\n")
    with pytest.raises(UserError, match=r"mine\.py is no Python file: .*, line 1"):
        table1.jobs(parsed("table1", f"--methods={tmp_path / 'mine.py'}"))


def test_a_users_method_may_read_the_options_of_any():
    def key(method, ranks):
        (job,) = table1.jobs(parsed(
            "table1", "--seeds=1", "--splits=frame", "--rho=.5", "--methods=fedilora",
            f"--config.method.fedilora.ranks={ranks}"))
        job.values["method"]["name"] = method
        return configuration_key(job, {})

    assert key("mine.py", "24,16,8") != key("mine.py", "4,4,4")
    assert key("ml_ecs", "24,16,8") == key("ml_ecs", "4,4,4")


@pytest.mark.parametrize(("method", "options"), [
    ("localpub_mixed", ()), ("ml_ecs", ("--config.method.ccl=False",)),
    ("ml_ecs", ("--config.ccl.weight=0",)), ("ml_ecs_plus", ("--config.plus.distil=0",))])
def test_a_fix_makes_runs_again_where_it_changed_them(method, options):
    """Where some public labels are missing, the server of localpub_mixed draws otherwise, and so do
    devices that nobody teaches about samples without a label."""
    def key(*arguments):
        (job,) = regime.jobs(parsed("regime", "--seeds=1", f"--methods={method}", "--splits=frame",
                                    "--rho=.5", "--labelled=50", *options, *arguments))
        return configuration_key(job, {})

    with_fix = key("--public=labelled"), key("--public=partly")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(job_module.REVISED, method, lambda values: False)
        assert key("--public=labelled") == with_fix[0] and key("--public=partly") != with_fix[1]
