"""Whoever opens a file of a room that others may write into does it by fedmq.schemas.local.files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
ROOMS = (
    "participant", "coordinator", "broker_config/node", "schemas/local", "fedmq/app", "fedmq/run", "fedmq/views",
    "fedmq/cli", "studies/population", "studies/engine", "fedmq/study",
)  # fmt: skip
RAW = {
    "open", "read_bytes", "read_text", "write_bytes", "write_text", "mkdir", "makedirs", "mmap", "memmap", "fromfile",
    "FileHandler", "is_file", "hardlink_to", "symlink_to",
}  # fmt: skip
PARSERS = {"load", "loads"}
OF = {"json", "np", "numpy", "pickle"}
ALLOWED = {
    ("schemas/local/files.py", "open"): "this is the place",
    ("schemas/local/files.py", "mmap"): "this is the place",
    ("schemas/local/files.py", "mkdir"): "this is the place",
    ("schemas/local/files.py", "loads"): "this is the place",
    ("schemas/local/durable.py", "open"): "a folder, to sync it",
    ("schemas/local/clocks.py", "read_text"): "the kernel's own file",
    ("schemas/local/locks.py", "open"): "the kernel's own file",
    ("broker_config/node/node.py", "read_text"): "fedmq's own rabbitmq.conf and definitions.json",
    ("broker_config/node/node.py", "loads"): "fedmq's own definitions.json",
    ("broker_config/node/node.py", "is_file"): "programs of the installed server",
    ("broker_config/node/processes.py", "is_file"): "programs of the installed server",
    ("broker_config/node/ctl.py", "open"): "it names a program, so its owner is looked at too",
    ("broker_config/node/ctl.py", "loads"): "the same file",
    ("broker_config/node/tls.py", "is_file"): "certificates that the user names",
    ("fedmq/cli/commands/broker.py", "is_file"): "certificates that the user names",
    ("schemas/local/streams.py", "open"): "/dev/null",
    ("fedmq/app/app.py", "is_file"): "the user's program, which is run",
    ("fedmq/app/model_process.py", "loads"): "a line of our own child",
    ("fedmq/app/model_worker.py", "loads"): "a line of our own parent",
    ("fedmq/study/app_problem.py", "read_bytes"): "the user's program, which is run",
    ("fedmq/study/checks.py", "read_bytes"): "the user's program, which is run",
    ("fedmq/study/checks.py", "is_file"): "the user's program, which is run",
    # Methods of other things
    ("coordinator/decisions/set_backs.py", "open"): "tasks",
    ("coordinator/decisions/ending.py", "open"): "tasks",
    ("coordinator/decisions/updates/claims.py", "open"): "tasks",
    ("coordinator/decisions/versions/rounds.py", "open"): "tasks",
    ("coordinator/decisions/task_desk.py", "open"): "tasks",
    ("coordinator/service/service.py", "open"): "a transport, an archive",
    ("participant/service/service.py", "open"): "a transport, a thread",
    ("participant/service/download.py", "open"): "a PayloadFile",
    ("fedmq/views/doctor.py", "open"): "a transport",
    ("fedmq/views/checks/update_trial.py", "loads"): "what it has just dumped",
}


def raw_calls(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Name(id="open")):
                found.add("open")
            case ast.Call(func=ast.Attribute(value=ast.Name(id=of), attr=name)) if of in OF and name in PARSERS:
                found.add(name)
            case ast.Call(func=ast.Attribute(attr=name)) if name in RAW:
                found.add(name)
    return found


def test_no_other_module_of_these_rooms_opens_a_file_by_itself() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for name in raw_calls(path)
    }
    assert found - set(ALLOWED) == set(), "use fedmq.schemas.local.files, or say here why not"
    assert set(ALLOWED) - found == set(), "it is not there any more"


@pytest.mark.parametrize(
    "line", ["open('x')", "Path('x').read_text()", "os.open('x', 0)", "json.loads(x)", "p.mkdir()"]
)
def test_a_new_raw_reader_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "new.py").write_text(line)
    assert raw_calls(tmp_path / "new.py")
