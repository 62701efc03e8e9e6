import textwrap

import pytest

from fedmq.config.file import load_config
from fedmq.coordinator.strategies import FedAsync, FedBuff
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.schemas.errors import ConfigError

GOOD = """
[run]
run_id = "r1"
[run.stop]
max_versions = 5
[strategy]
name = "fedbuff"
buffer_size = 4
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "federation.toml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def mistakes(path, flags=(), environ=None):
    """The lines behind the first one."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, flags, environ or {})
    head, *lines = str(caught.value).splitlines()
    assert head.startswith(f"{path} has ")
    return [line.strip() for line in lines]


def test_a_short_file_is_enough_and_its_paths_are_relative_to_it(write, tmp_path):
    config = load_config(write(GOOD), environ={})
    assert isinstance(config.strategy, FedBuff)
    assert config.strategy.buffer_size == 4
    assert config.app == str(tmp_path / "app.py")
    assert config.run_dir == tmp_path / "runs" / "r1"
    assert config.participant.spool_dir == str(tmp_path / "spool")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("bufer_size = 3", "strategy.bufer_size: unknown key (got 3), allowed: buffer_size, "
         "buffer_timeout_s, min_updates, name, normalize, "
         "server_learning_rate, server_optimizer, staleness; did you mean buffer_size?"),
        ("concurrency = 3", "strategy.concurrency: unknown key (got 3), allowed: buffer_size, "
         "buffer_timeout_s, min_updates, name, normalize, "
         "server_learning_rate, server_optimizer, staleness; it belongs in [run]"),
        ('staleness = { name = "polynomal" }', 'strategy.staleness.name: got "polynomal", allowed: "constant", '
         '"polynomial", "hinge", "delay_adaptive"; did you mean polynomial?'),
        ("staleness = { a = 1 }", 'strategy.staleness.name: missing, expected "constant", "polynomial", "hinge", '
         '"delay_adaptive"'),
        ('staleness = { name = "polynomial", a = "x" }', 'strategy.staleness.a: got "x", expected a number'),
        ("[training]\nepochs = 0", "training.epochs: got 0, allowed: 1 or more"),
        ("[training]\nepochs = 1.5", "training.epochs: got 1.5, expected a whole number"),
        ('[training]\nepochs = "2"', 'training.epochs: got "2", expected a whole number'),
        ("[training]\nlearning_rate = -1", "training.learning_rate: got -1, allowed: more than 0.0"),
        ('[participant]\nconditions = ["idel"]', 'participant.conditions.1: got "idel", allowed: "idle", "charging", '
         '"unmetered"; did you mean idle?'),
        ('[broker]\nprefix = "no spaces"', 'broker.prefix: got "no spaces", allowed: 1 to 64 letters, digits, dots, '
         "underscores or dashes, the first a letter or a digit"),
        ("[training]\ncommit_interval_s = 2", "training.commit_interval_s: unknown key (got 2), allowed: batch_size, "
         "epochs, extra, learning_rate, max_steps, proximal_mu, seed, unfreeze; it belongs in [commit]"),
        ("learning_rate = 0.1", "strategy.learning_rate: unknown key (got 0.1), allowed: buffer_size, "
         "buffer_timeout_s, min_updates, name, normalize, "
         "server_learning_rate, server_optimizer, staleness; it belongs in [training]"),
        ("alpha = 0.5", "strategy.alpha: unknown key (got 0.5), allowed: buffer_size, "
         "buffer_timeout_s, min_updates, name, normalize, "
         "server_learning_rate, server_optimizer, staleness"),
        ("momentum = 0.5", "strategy.momentum: unknown key (got 0.5), allowed: buffer_size, "
         "buffer_timeout_s, min_updates, name, normalize, "
         "server_learning_rate, server_optimizer, staleness; it belongs in [strategy.server_optimizer]"),
        ("[training]\nmax_versions = 3", "training.max_versions: unknown key (got 3), allowed: batch_size, "
         "epochs, extra, learning_rate, max_steps, proximal_mu, seed, unfreeze; it belongs in [run.stop]"),
        ('[training]\nrunsdir = "x"', 'training.runsdir: unknown key (got "x"), allowed: batch_size, '
         "epochs, extra, learning_rate, max_steps, proximal_mu, seed, unfreeze"),
        ('[training]\nruns_dir = "x"', 'training.runs_dir: unknown key (got "x"), allowed: batch_size, '
         "epochs, extra, learning_rate, max_steps, proximal_mu, seed, unfreeze; it belongs at the top of the file, "
         "above all tables"),
        ('[training]\nname = "x"', 'training.name: unknown key (got "x"), allowed: batch_size, '
         "epochs, extra, learning_rate, max_steps, proximal_mu, seed, unfreeze"),
        ("[trainning]\nepochs = 2", "trainning: unknown key (got a table), allowed: app, archive, broker, commit, "
         "downlink, files, initial, participant, run, runs_dir, security, strategy, training, uplink; did you mean "
         "training?"),
        ('[security]\nidentity = "users"', 'security.identity: got "users", allowed: "user", "open"; did you mean '
         "user?"),
        ('[security]\ncoordinator_user = "no spaces"', 'security.coordinator_user: got "no spaces", allowed: 1 to 64 '
         "letters, digits, dots, underscores or dashes, the first a letter or a digit"),
        ('[broker]\nauth = "external"\nurl = "amqps://h/"', 'broker.cert_file: missing; auth = "external" logs in by '
         "this certificate"),
        ('[broker]\nauth = "external"\nurl = "amqp://h/"\ncert_file = "c.pem"', 'broker.url: auth = "external" takes '
         "TLS, expected amqps://HOST:PORT/VHOST"),
    ],
)  # fmt: skip
def test_each_mistake_says_where_what_was_got_and_what_is_allowed(write, change, said):
    assert mistakes(write(GOOD + change)) == [said]


@pytest.mark.parametrize("value", ['"' + 100_000 * "a" + '"', f"[{100_000 * '1, '}1]"], ids=["a text", "a list"])
def test_of_a_long_value_only_the_beginning_is_shown(write, value):
    (said,) = mistakes(write(f"{GOOD}[training]\nepochs = {value}"))
    assert said.endswith(", expected a whole number")
    assert " characters)" in said
    assert len(said) < 300


def test_what_a_method_lacks_is_named_with_its_place(write):
    scaffold = GOOD.replace('name = "fedbuff"', 'name = "scaffold"\nnum_participants = 3')
    said = "training.learning_rate: missing, expected a number above 0: with scaffold participants divide by it to"
    assert [text.startswith(said) for text in mistakes(write(scaffold))] == [True]
    area = GOOD.replace('name = "fedbuff"', 'name = "area"\nnum_participants = 3\nmemory = "participant"')
    weighted = area.replace("[run]", '[run]\nclient_weights = "examples"')
    said = "run.client_weights: got 'examples', allowed: 'equal', because area has its memory on the participants"
    assert mistakes(write(weighted)) == [said]


def test_what_cannot_go_with_feddf_is_refused_with_its_keys(write):
    """FedDF keeps whole models of former versions, and takes each base to be the version itself."""
    feddf = GOOD.replace('name = "fedbuff"', 'name = "feddf"')
    more = '[downlink]\ncodec = "hidden"\n[training]\nunfreeze = [{ version = 2, tensors = ["base"] }]'
    assert sorted(mistakes(write(feddf + more))) == [
        "downlink.codec: got 'hidden', allowed with the strategy feddf: none, bf16",
        "training.unfreeze: leave it out: the state of feddf cannot grow by tensors within a run",
    ]


def test_all_mistakes_are_named_at_once(write):
    path = write(
        """
        [run]
        run_id = "bad id"
        concurrency = 0
        selection = "unifrom"
        [run.stop]
        target = { name = "accuracy" }
        [strategy]
        name = "fedbuf"
        """
    )
    assert sorted(mistakes(path)) == [
        "run.concurrency: got 0, allowed: 1 or more",
        'run.run_id: got "bad id", allowed: 1 to 64 letters, digits, dots, underscores or dashes, '
        "the first a letter or a digit",
        'run.selection: got "unifrom", allowed: "uniform", "least_used"; did you mean uniform?',
        "run.stop.target.value: missing, expected a number",
        'strategy.name: got "fedbuf", allowed: "fedasync", "fedbuff", "fedavg", "fadas", "fednova", "fedstaleweight", '
        '"participation", "port", "ca2fl", "area", "scaffold", "fedcompass", "distillation", "feddf", "custom"; '
        "did you mean fedbuff?",
    ]


def test_missing_tables_and_keys_are_named(write):
    assert mistakes(write("[run.stop]\nmax_versions = 1\n")) == [
        "run.run_id: missing, expected text",
        "strategy: missing, expected a table",
    ]


def test_a_run_that_would_never_end_is_refused(write):
    assert mistakes(write(GOOD.replace("max_versions = 5", ""))) == [
        "run.stop: the run would never end; set one or more of max_versions, max_updates, max_time_s, target, patience"
    ]


def test_a_file_that_is_not_toml_is_refused_with_the_line(write):
    with pytest.raises(ConfigError, match=r"federation.toml is not valid TOML: .*line 3"):
        load_config(write("[run]\nrun_id = 'x'\nconcurrency 3\n"), environ={})


def test_values_nested_without_end_are_a_mistake_and_no_traceback(write):
    nested = "[" * 3000
    with pytest.raises(ConfigError, match=r"federation.toml is not valid TOML: maximum recursion depth"):
        load_config(write(f"a = {nested}"), environ={})
    with pytest.raises(ConfigError, match=r"run\.concurrency .*expected a whole number"):
        load_config(write(GOOD), environ={"FEDMQ_RUN__CONCURRENCY": nested})


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no federation file .*nowhere.toml"):
        load_config(tmp_path / "nowhere.toml", environ={})


def test_flags_win_over_the_environment_which_wins_over_the_file(write):
    path = write(GOOD)
    environ = {"FEDMQ_STRATEGY__BUFFER_SIZE": "6", "FEDMQ_RUN__CONCURRENCY": "7", "PATH": "/bin"}
    config = load_config(path, ["run.concurrency=8"], environ)
    assert (config.strategy.buffer_size, config.run.concurrency) == (6, 8)


def test_overrides_are_read_as_the_key_they_set(write):
    environ = {
        "FEDMQ_BROKER_URL": "amqp://u:secret@h:1/v",
        "FEDMQ_RUN__RUN_ID": "123",
        "FEDMQ_RUN__MAX_STALENESS": "9",
        "FEDMQ_PARTICIPANT__CONDITIONS": "idle, charging",
        "FEDMQ_STRATEGY__STALENESS": '{ name = "polynomial", a = 0.25 }',
        "FEDMQ_TRAINING__EXTRA__CLIP": "1.5",
        "FEDMQ_RUNS_DIR": "/elsewhere",
    }
    config = load_config(write(GOOD), environ=environ)
    assert config.broker.url.get_secret_value() == "amqp://u:secret@h:1/v"
    assert (config.run.run_id, config.run.max_staleness) == ("123", 9)
    assert config.participant.conditions == ("idle", "charging")
    assert config.strategy.staleness == Polynomial(a=0.25)
    assert config.training.extra == {"clip": 1.5}
    assert config.runs_dir == "/elsewhere"


@pytest.mark.parametrize("environ", [{}, {"FEDMQ_BROKER_URL": "amqp://u:x@one/,amqp://u:x@two/"}])
def test_the_nodes_of_a_cluster_are_a_list_or_one_text(write, environ):
    in_file = "" if environ else '[broker]\nurl = ["amqp://u:x@one/", "amqp://u:x@two/"]\n'
    config = load_config(write(GOOD + in_file), environ=environ)
    assert config.broker.url.get_secret_value() == "amqp://u:x@one/,amqp://u:x@two/"


def test_a_strategy_can_be_replaced_as_a_whole(write):
    config = load_config(write(GOOD), ['strategy={ name = "fedasync" }'], {})
    assert isinstance(config.strategy, FedAsync)


def test_mistakes_in_overrides_name_the_variable_or_flag(write):
    environ = {"FEDMQ_RUN__CONCURRENCY": "many", "FEDMQ_RUN_SEED": "3", "FEDMQ_NONSENSE": "1", "FEDMQ_FOO": "1",
               "FEDMQ_LEARNING_RATE": "1"}  # fmt: skip
    assert mistakes(write(GOOD), ["strategy.bufer_size=3", "nonsense", "app.x=1", "run_id=x"], environ) == [
        "FEDMQ_FOO: unknown environment variable; a key is written as in FEDMQ_RUN__CONCURRENCY.",
        "FEDMQ_LEARNING_RATE: unknown environment variable; did you mean FEDMQ_STRATEGY__LEARNING_RATE or "
        "FEDMQ_TRAINING__LEARNING_RATE?",
        "FEDMQ_NONSENSE: unknown environment variable; a key is written as in FEDMQ_RUN__CONCURRENCY.",
        "FEDMQ_RUN_SEED: unknown environment variable; did you mean FEDMQ_RUN__SEED?",
        "--set nonsense: expected key.path=value, as in --set run.concurrency=4",
        "app: got a table, expected text",
        'run.concurrency (from FEDMQ_RUN__CONCURRENCY): got "many", expected a whole number',
        "strategy.bufer_size (from --set strategy.bufer_size): unknown key (got 3), allowed: buffer_size, "
        "buffer_timeout_s, min_updates, name, normalize, "
        "server_learning_rate, server_optimizer, staleness; did you mean buffer_size?",
        'run_id (from --set run_id): unknown key (got "x"), allowed: app, archive, broker, commit, downlink, '
        "files, initial, participant, run, runs_dir, security, strategy, training, uplink; it belongs in [run]",
    ]  # fmt: skip


def test_a_wrong_broker_url_is_told_with_its_source(write):
    def source(flags=(), environ=None, broker=None):
        with pytest.raises(ConfigError) as caught:
            load_config(write(GOOD), flags, environ or {}, broker=broker)
        return str(caught.value).splitlines()[1].partition(": ")[0].strip()

    assert source(environ={"FEDMQ_BROKER_URL": "http://x"}) == "broker.url (from FEDMQ_BROKER_URL)"
    assert source(["broker.url=nonsense"]) == "broker.url (from --set broker.url)"
    assert source(["broker.url=amqp://h/"], broker="nonsense") == "broker.url (from --broker)"
    assert mistakes(write(GOOD + '[broker]\nurl = "nonsense"'))[0].startswith("broker.url: the broker's URL")


def test_variables_of_the_process_are_no_settings(write):
    environ = {"FEDMQ_TF_THREADS": "1", "FEDMQ_RABBITMQ_SBIN": "/x", "FEDMQ_BROKER_PASSWORD": "y"}
    assert load_config(write(GOOD), environ=environ).run.run_id == "r1"


@pytest.mark.parametrize(
    "change",
    [
        '[broker]\nurl = "http://user:hunter2@h"',
        '[broker]\nurl = "amqp://user:hunter2@h:port/"',
        '[broker]\nulr = "amqp://user:hunter2@h/"',
        '[broker]\npassword = "hunter2"',
        '[participant]\nspool_dri = "amqp://user:hunter2@h/"',
    ],
)
def test_a_password_is_never_shown(write, change):
    assert "hunter2" not in "".join(mistakes(write(GOOD + change)))
    assert "hunter2" not in repr(load_config(write(GOOD), ["broker.url=amqp://u:hunter2@h/"], {}))
