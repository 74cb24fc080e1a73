"""Medians, ratios and shares of the programs that measure speed, on clocks whose times are known."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from tests.unit.test_sample_efficiency import Clock


@pytest.fixture
def program(program_of):
    return program_of


@pytest.fixture
def clock():
    return Clock()


def taking(clock, *seconds):
    """A function that takes these seconds, one call after the other."""
    left = iter(seconds)

    def work(*_):
        clock.now += next(left)

    return work


# speed.py


@pytest.fixture
def speed(program, monkeypatch, clock):
    """The program with the clock of the test; what it stores is found in `stored`."""
    module = program("speed")
    monkeypatch.setattr(module, "time", clock)
    module.stored = {}
    monkeypatch.setattr(
        module, "store", lambda name, content: module.stored.update({name: json.loads(json.dumps(content))})
    )
    return module


OPTIONS = SimpleNamespace(models=["tiny"], rounds=2, before="abc")


def test_a_spread_is_median_and_range(speed):
    assert speed.spread([5.0, 1.0, 2.0, 10.0]) == {"median": 3.5, "range": [1, 10], "n": 4}, (
        "not the median and the range"
    )
    assert speed.rounded({"a": [1234.56, {"b": 0.000123456}], "n": 12345, "s": "x"}) == {
        "a": [1235.0, {"b": 0.0001235}], "n": 12345, "s": "x",
    }, "not four significant digits of every number, and whole ones as they are"  # fmt: skip


def test_the_first_time_warms_up(speed, clock):
    assert speed.seconds_of(taking(clock, 100, 1, 5, 2), 3) == 2, "not the median of three times after the first"


def test_contestants_take_turns_in_new_orders(speed):
    order, counts = [], {name: itertools.count() for name in "abc"}

    def contestant(name):
        return lambda: order.append(name) or next(counts[name])

    found = speed.take_turns({name: contestant(name) for name in "abc"}, 5)
    assert found == dict.fromkeys("abc", [1, 2, 3, 4, 5]), "the first round counts, or a round is missing"
    rounds = ["".join(order[first : first + 3]) for first in range(0, 18, 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}, "not every contestant once a round"
    assert len(set(rounds)) > 2, "every round has the same order"


def test_ratios_are_those_of_the_same_round(speed):
    found = speed.against_generate({"generate": [10.0, 5.0, 40.0], "ours": [40.0, 10.0, 50.0]})
    assert found["ratios"]["ours"] == {"median": 2, "range": [1.25, 4], "n": 3}, (
        "not the median of the rounds' ratios to generate (that of the rates is 4)"
    )
    assert found["ratios"]["generate"]["range"] == [1, 1]
    assert found["tokens_per_second"]["ours"] == {"median": 40, "range": [10, 50], "n": 3}


def test_tokens_of_generate_end_with_the_first_eos(speed, monkeypatch, clock):
    """7 is EOS; of two responses of four tokens after a prompt of two, three and four tokens count, in 2 s."""
    monkeypatch.setattr(speed.LlamaDecoder, "fits", lambda policy: False)
    monkeypatch.setattr(speed.GraphDecoder, "fits", lambda policy: False)
    ids, seen = torch.ones(2, 2, dtype=torch.long), {}
    monkeypatch.setattr(speed.rollouts, "encode_prompts", lambda tokenizer, prompts: (ids, ids))

    def generate(**settings):
        clock.now += 1.5
        seen.update(settings)
        return torch.tensor([[7, 7, 1, 2, 7, 7], [7, 7, 1, 2, 3, 4]])

    tokenizer = SimpleNamespace(pad_token_id=7, eos_token_id=7, batch_decode=lambda *_, **__: taking(clock, 0.5)())
    policy = SimpleNamespace(device="cpu", generate=generate)
    contestants = speed.sampling_contestants(policy, tokenizer, ["a", "b"], 4)
    assert contestants["generate"]() == 7 / 2, "not the tokens up to the first EOS, over the seconds with the texts"
    assert (seen["do_sample"], seen["top_k"], seen["top_p"], seen["temperature"]) == (True, 0, 1.0, 1.0), (
        "generate samples from another distribution than the library"
    )

    def sample(policy, tokenizer, prompts, tokens, temperature, generator):
        clock.now += 4
        assert (tokens, temperature) == (4, 1.0) and speed.rollouts.decoder_for(policy) is speed.Decoder
        return SimpleNamespace(mask=torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))

    monkeypatch.setattr(speed.rollouts, "sample", sample)
    assert contestants["plain decoder"]() == 7 / 4, "not the tokens of the mask, over the seconds"
    assert speed.rollouts.decoder_for is speed.decoder_for, "the decoder stays replaced"


def test_contestants_are_the_decoders_that_fit(speed, monkeypatch):
    plain, llama, graph = speed.Decoder, speed.LlamaDecoder, speed.GraphDecoder
    for fitting, ours in (
        ((), {}),
        ((llama,), {"ours": llama}),
        ((llama, graph), {"unrecorded": llama, "ours": graph}),
    ):
        for kind in (llama, graph):
            monkeypatch.setattr(kind, "fits", lambda policy, fits=kind in fitting: fits)
        generate, *others = speed.sampling_contestants(None, None, [], 4).items()
        found = {name: contestant.args[0] for name, contestant in others}
        assert generate[0] == "generate" and found == {"plain decoder": plain} | ours, "a decoder has another's name"


def test_limits_are_bytes_and_operations_per_second(speed, monkeypatch):
    large = SimpleNamespace(nbytes=8e9, sum="read")
    monkeypatch.setattr(speed, "torch", SimpleNamespace(ones=lambda n: large, randn=lambda *size: torch.ones(1)))
    monkeypatch.setattr(speed, "seconds_of", lambda work, repeats: 4.0 if work == "read" else 2**13)
    assert speed.limits(OPTIONS) == {"read_gb_per_second": 2.0, "matmul_gflops": 2**21 / 1e9}, (
        "not the bytes of the tensor, or not 2 n³ operations, over the seconds"
    )


def test_shares_of_the_machine_s_limits(speed, monkeypatch):
    """A model of 6 weights, 24 bytes; 16 texts at a median of 48 tokens a second take three steps a second."""
    policy = torch.nn.Linear(3, 2, bias=False)
    world = SimpleNamespace(prompts=["a", "b", "c"], tokenizer=None)
    machine = {"read_gb_per_second": 144e-9, "matmul_gflops": 5760e-9}
    rates, asked = {"generate": [4.0, 8, 2], "ours": [48, 16, 64]}, []
    monkeypatch.setattr(speed, "limits", lambda arguments: machine)
    monkeypatch.setattr(speed, "model_and_world", {"tiny": (policy, world)}.__getitem__)
    monkeypatch.setattr(speed, "sampling_contestants", lambda *arguments: asked.append(arguments[2:]))
    monkeypatch.setattr(speed, "take_turns", lambda contestants, rounds: rates)
    speed.sampling(OPTIONS)
    first, second = speed.stored["sampling"]["rows"]
    assert [(len(prompts), tokens) for prompts, tokens in asked] == [(16, 32), (64, 32)], "other sizes are sampled"
    assert asked[0][0][:4] == ["a", "b", "c", "a"], "not the world's prompts over and over"
    assert (first["model"], first["batch"], second["batch"], first["new_tokens"]) == ("tiny", 16, 64, 32)
    assert first["weights_read_gb_per_second"] == pytest.approx(72e-9), "not 4 bytes of every weight, once a step"
    assert first["share_of_bandwidth"] == pytest.approx(0.5) and second["share_of_bandwidth"] == pytest.approx(0.125)
    assert first["share_of_arithmetic"] == pytest.approx(0.1), "not two operations for each weight and token"
    assert first["ratios"] == speed.against_generate(rates)["ratios"]


def test_an_update_is_timed_part_by_part_against_trl(speed, monkeypatch):
    """Rounds are paired; TRL's garbage collection is taken out of its own seconds alone."""
    rows = {
        "trl": [(20.0, 4.0, 6.0, 5.0), (30.0, 5.0, 8.0, 10.0), (10.0, 3.0, 2.0, 6.0)],
        "same": [(10.0, 1.0, 3.0, 0.0), (6.0, 2.0, 3.0, 0.0), (4.0, 1.5, 2.0, 0.0)],
    }
    monkeypatch.setattr(speed, "UPDATE_CASES", {"tiny": {"batch": 16, "arms": {"same": {"share": 1}}}})

    class Worker:
        def __init__(self, arm):
            self.arm, self.process = arm, SimpleNamespace(stdin=SimpleNamespace(close=lambda: None))
            names, peak = ("seconds", "sample", "update", "gc"), {"trl": 400, "same": 90}[arm]
            self.answers = [
                dict(zip(names, times, strict=True))
                | {"peak_mib": peak + 10 * number, "tokens": 100 * number, "score": number, "kl": -number}
                for number, times in enumerate([(99.0,) * 4, *rows[arm]])
            ]

        def update(self):
            return self.answers.pop(0)

    monkeypatch.setattr(speed, "make_worker", lambda model, arm, scratch: Worker(arm))
    speed.update(SimpleNamespace(models=["tiny"], rounds=3))
    content = speed.stored["update_tiny"]
    same, trl = content["arms"]["same"], content["arms"]["trl"]
    assert content["trl_gc"] == 6 and content["rounds"] == 3, "not the median of TRL's collections"
    assert same["seconds"] == {"median": 6, "range": [4, 10], "n": 3} and trl["seconds"]["median"] == 20
    assert (same["sample"], same["update"], same["score"]) == (1.5, 3, 1.5), "parts are not medians that add up"
    assert same["times_faster"] == {"median": 2.5, "range": [2, 5], "n": 3}, (
        "not TRL's seconds over ours, round by round"
    )
    assert same["times_faster_without_gc"]["range"] == [1, 20 / 6], "the collection is not taken out of TRL's seconds"
    assert trl["times_faster_without_gc"]["median"] == pytest.approx(2 / 3), (
        "TRL's own seconds have the collection in them"
    )
    assert same["share_of_memory"] == 120 / 430 and same["peak_mib"] == 120, "not the peak at the end, over TRL's"
    assert (same["tokens"], same["scores"], same["kl"]) == (200, [1, 2, 3], [-1, -2, -3])
    assert (same["settings"], trl["settings"]) == ({"share": 1}, {}), "the settings are another arm's"


def test_a_curve_is_the_arm_s_own(speed, monkeypatch):
    class Worker:
        def __init__(self, model, arm, scratch):
            self.count, self.sign = itertools.count(1), {"trl": 1, "memory": -1}[arm]
            self.process = SimpleNamespace(stdin=SimpleNamespace(close=lambda: None))

        def update(self):
            number = next(self.count)
            return {"score": self.sign * number, "kl": 10 * self.sign * number, "seconds": 0}

    monkeypatch.setattr(speed, "make_worker", Worker)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    speed.curve(OPTIONS)
    assert speed.stored["curve"]["arms"] == {
        "trl": [{"score": 1, "kl": 10}, {"score": 2, "kl": 20}],
        "memory": [{"score": -1, "kl": -10}, {"score": -2, "kl": -20}],
    }, "scores and KL are not those of the arm's updates"  # fmt: skip


def test_growth_has_medians_and_their_ratio(speed, monkeypatch, clock):
    made, seconds = [], itertools.cycle([50.0, 3.0, 2.0, 7.0])

    class Trainer:
        def __init__(self, policy, reward, **settings):
            made.append(settings)

        def train_step(self, prompts):
            clock.now += next(seconds)

    monkeypatch.setattr(speed, "PPOTrainer", Trainer)
    monkeypatch.setattr(speed, "llama", lambda *size: torch.nn.Linear(size[1], size[2], bias=False))
    monkeypatch.setattr(speed, "sampling_contestants", lambda *arguments: None)
    monkeypatch.setattr(speed, "take_turns", lambda contestants, rounds: {"ours": [9.0, 3, 5], "generate": [4.0, 1, 2]})
    speed.growth(SimpleNamespace(rounds=3))
    rows = speed.stored["growth"]["rows"]
    assert {(row["ours"], row["generate"], row["ratio"], row["update_seconds"]) for row in rows} == {(5, 2, 2.5, 3)}, (
        "not the medians and their ratio, or the first update, which warms up, is counted"
    )
    base, *others = rows
    assert (base["batch"], base["tokens"], base["vocabulary"], base["parameters"]) == (16, 32, 588, 512)
    for row, settings in zip(rows, made, strict=True):
        sizes = [settings[name] for name in ("batch_size", "minibatch_size", "max_new_tokens")]
        assert sizes == [row["batch"], row["batch"], row["tokens"]], "an update of another size is timed"
    assert [row["changed"] for row in others] == ["batch"] * 3 + ["tokens"] * 2 + ["model"] * 2 + ["vocabulary"] * 2


def test_chapters_are_timed_before_and_now(speed, monkeypatch):
    commits = []

    def run(words, **options):
        if "checkout" in words:
            commits.append((options["cwd"].name, words[-1]))

    class Running:
        def __init__(self, words, cwd, **options):
            folder = cwd / "_build/executed"
            folder.mkdir(parents=True, exist_ok=True)
            number = int(words[-1][:2])
            seconds = {"before": 4 * number, "now": number}[cwd.name]
            (folder / f"{words[-1]}.json").write_text(json.dumps({"seconds": seconds}))

        def wait(self):
            return 0

    monkeypatch.setattr(speed, "subprocess", SimpleNamespace(run=run, Popen=Running, DEVNULL=None))
    speed.chapters(OPTIONS)
    content = speed.stored["chapters"]
    count = len(content["rows"])
    assert commits == [("before", "abc"), ("now", "HEAD")] and content["before_commit"] == "abc"
    assert {row["share"] for row in content["rows"]} == {0.25}, "not the seconds now over those before"
    total = sum(range(1, count + 1))
    assert content["total"] == {"before": 4 * total, "now": total}, "the totals are not those of all chapters"


def test_a_gpu_warms_up_three_times(program, monkeypatch):
    gpu, seconds = program("speed_gpu"), iter([900.0, 800, 700, 5, 1, 3])

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            pass

        synchronize = record

        def elapsed_time(self, end):
            return 1e3 * next(seconds)

    monkeypatch.setattr(gpu, "torch", SimpleNamespace(cuda=SimpleNamespace(Event=Event)))
    assert gpu.gpu_seconds(lambda: None, 3) == 3, "not the median seconds after the first three"


# v1_overhead.py, threads.py


def test_quartiles_of_the_pairs(program):
    found = program("v1_overhead").spread([7.0, 1, 6, 2, 5, 3, 4.00004])
    assert found == {"median": 4.0, "quartiles": [2, 6], "range": [1, 7]}, "not median, quartiles, range, four digits"


def test_v1_s_time_is_divided_by_v0_s(program):
    overhead = program("v1_overhead")
    times = [(1.0, 2.0, 4.0, 3.0), (2.0, 2.0, 8.0, 8.0), (9.0, 3.0, 3.0, 6.0)]
    rows = [dict(zip(("cpu_v0", "cpu_v1", "wall_v0", "wall_v1"), row, strict=True)) for row in times]
    found = overhead.summary_of(rows)
    assert found["cpu_ratio"]["median"] == 1 and found["cpu_ratio"]["range"] == [0.3333, 2], "not v1 / v0, pair by pair"
    assert found["wall_ratio"]["range"] == [0.75, 2], "wall-clock ratios are those of the CPU times"
    assert found["ratio_of_sums"] == {"cpu": 0.5833, "wall": 1.1333}, "not the sums of v1 over those of v0"
    assert found["cpu_seconds_per_update_v0"] == 2 and found["pairs"] == 3, "a pair has two updates of each"


def test_updates_are_timed_with_their_logging(program, monkeypatch):
    overhead, cpu, wall = program("v1_overhead"), Clock(), Clock()
    both = SimpleNamespace(process_time=cpu.process_time, perf_counter=wall.perf_counter)
    monkeypatch.setattr(overhead, "time", both)

    def train_step(prompts):
        cpu.now, wall.now = cpu.now + 1, wall.now + 10
        return {}, None

    def log(metrics):
        cpu.now, wall.now = cpu.now + 0.5, wall.now + 2

    trainer = SimpleNamespace(train_step=train_step, log=log, batches=itertools.repeat([]))
    assert overhead.timed(trainer, 3) == (4.5, 36), "not CPU and wall-clock seconds of three updates"


def test_gains_of_threads_are_medians_and_the_widest_range(program, monkeypatch, tmp_path):
    threads = program("threads")
    policy = torch.nn.Linear(5, 2, bias=False)
    trainer = SimpleNamespace(policy=policy, prepare=lambda dataset: None)
    times = {True: {1: [4.0, 2, 9], 2: [1.0, 2, 4]}, False: {1: [1.0, 1, 1], 2: [4.0, 2, 8]}}
    alone, others = [True], []

    class Other:
        def __init__(self, words):
            alone[0] = False
            others.append(words[-1])

        def kill(self):
            alone[0] = True

        wait = kill

    monkeypatch.setattr(threads, "SIZES", {"small": (0, 0)})
    monkeypatch.setattr(threads, "RESULTS", tmp_path)
    monkeypatch.setattr(threads, "threads", SimpleNamespace(_by_default=2))
    monkeypatch.setattr(threads, "trainer_of", lambda width, layers: trainer)
    monkeypatch.setattr(threads, "update_seconds", lambda trainer, count: times[alone[0]][count].pop(0))
    times[True][2].insert(0, 99.0)
    monkeypatch.setattr(threads, "ROUNDS", 3)
    monkeypatch.setattr(threads.subprocess, "Popen", Other)
    threads.main()
    stored = json.loads((tmp_path / "threads.json").read_text())
    (row,) = stored["sizes"]
    assert (row["size"], row["parameters"], stored["threads"], others) == ("small", 10, 2, ["burn"])
    assert row["alone"] == {"one": 4, "all": 2, "gain": 2, "range_of_gain": [0.5, 9]}, (
        "not the median seconds of three turns after one that warms up, and one thread's over all threads'"
    )
    assert row["beside"] == {"one": 1, "all": 4, "gain": 0.25, "range_of_gain": [0.125, 0.5]}, "not beside another run"
