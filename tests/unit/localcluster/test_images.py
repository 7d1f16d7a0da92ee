"""Tags are digests of what goes into an image; the Containerfiles keep what is slow before what changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcluster.addons.buildah import pip_settings, step_title, uv_settings
from localcluster.components import REPOSITORY, Cluster
from localcluster.errors import ClusterError
from localcluster.images import IMAGES, VLLM, Image, files_below, last_built, node_has, pull_job, tag_of
from localcluster.layout import Layout
from localcluster.report import Report


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in {"Containerfile": "FROM base", "lock": "a==1", "code/a.py": "a", "code/b/c.py": "c"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    return tmp_path


IMAGE = Image("image", "Containerfile", ("lock",), ("code",))


@pytest.mark.parametrize("file", ["Containerfile", "lock", "code/a.py", "code/b/c.py", "code/new.py"])
def test_every_file_that_goes_in_changes_the_tag(repository: Path, file: str) -> None:
    before = tag_of(IMAGE, repository)
    (repository / file).write_text("something else")
    assert tag_of(IMAGE, repository) != before


def test_a_renamed_file_and_another_argument_change_the_tag(repository: Path) -> None:
    before = tag_of(IMAGE, repository)
    other = Image("image", "Containerfile", ("lock",), ("code",), {"ACCELERATOR": "cpu"})
    assert tag_of(other, repository) != before
    (repository / "code/a.py").rename(repository / "code/z.py")
    assert tag_of(IMAGE, repository) != before


def test_compiled_files_and_others_around_do_not_change_the_tag(repository: Path) -> None:
    before = tag_of(IMAGE, repository)
    (repository / "code/__pycache__").mkdir()
    (repository / "code/__pycache__/a.cpython-311.pyc").write_bytes(b"x")
    (repository / "README.md").write_text("x")
    assert tag_of(IMAGE, repository) == before


def test_an_image_on_another_follows_what_that_one_installs_and_not_its_code(repository: Path) -> None:
    (repository / "Upper").write_text("FROM image")
    upper = Image("upper", "Upper", (), (), on=IMAGE)
    before = tag_of(upper, repository)
    (repository / "code/a.py").write_text("something else")
    assert tag_of(upper, repository) == before
    (repository / "lock").write_text("a==2")
    assert tag_of(upper, repository) != before


@pytest.mark.parametrize("image", [*IMAGES, VLLM], ids=lambda image: image.name)
def test_a_containerfile_copies_the_lock_first_the_code_last_and_nothing_that_is_not_in_the_tag(image: Image) -> None:
    stages = (REPOSITORY / image.containerfile).read_text().split("\nFROM ")[1:]
    *helpers, copied = [
        [line.split()[1] for line in stage.splitlines() if line.startswith("COPY ") and "--from=" not in line]
        for stage in stages
    ]
    assert copied == [*image.dependencies, *image.sources]
    for helper in helpers:  # stages that only make something for the last one
        assert all(name.startswith(image.sources) for name in helper)
    ignored = (REPOSITORY / ".containerignore").read_text().splitlines()
    for name in copied:
        assert any(line.startswith("!") and name.startswith(line[1:]) for line in ignored), name
        assert files_below(REPOSITORY, [name]), name


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_an_image_runs_without_root_and_never_from_its_working_directory(image: Image) -> None:
    text = (REPOSITORY / image.containerfile).read_text()
    assert "\nUSER 65532:65532\n" in text
    assert "PYTHONSAFEPATH=1" in text
    assert "--require-hashes" in text
    # A build may have a cache mounted; a file system that is not the image's own is never cleared.
    assert "rm -rf /root/.cache" not in text


def test_indexes_of_the_person_reach_the_build() -> None:
    assert 'index-url = "https://index.example/simple"' in uv_settings(
        {"UV_DEFAULT_INDEX": "https://index.example/simple"}
    )
    assert "index-url = https://index.example/simple" in pip_settings({"PIP_INDEX_URL": "https://index.example/simple"})
    assert "index-url" not in uv_settings({}) + pip_settings({})


def test_progress_shows_the_steps_that_run_something() -> None:
    assert step_title("STEP 4/11: RUN  python3.11   -m venv") == "4/11 RUN python3.11 -m venv"
    assert step_title("STEP 1/11: FROM base") == ""
    assert step_title("Collecting torch") == ""


def test_a_pull_is_one_job_for_an_image_and_a_node_and_goes_by_itself() -> None:
    job = pull_job("127.0.0.1:5001/a:1", "node-1")
    assert job == pull_job("127.0.0.1:5001/a:1", "node-1")
    assert job["metadata"]["name"] != pull_job("127.0.0.1:5001/a:2", "node-1")["metadata"]["name"]
    assert job["spec"]["template"]["spec"]["nodeName"] == "node-1"
    assert job["spec"]["ttlSecondsAfterFinished"] > 0


def test_a_node_has_an_image_when_it_lists_its_name() -> None:
    node = {"metadata": {}, "status": {"images": [{"names": ["a@sha256:1", "a:1"]}, {"names": None}]}}
    assert node_has(node, "a:1")
    assert not node_has(node, "a:2")
    assert not node_has({"metadata": {}, "status": {}}, "a:1")


def test_without_images_the_way_to_them_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="python -m localcluster images"):
        last_built(Cluster(Layout(tmp_path), "local", {}, Report()))
