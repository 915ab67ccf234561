"""Memory: what a container allows and has left, when the watch speaks, what autograd saves, what a user is told."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ebr.data import host_memory
from ebr.training.resources import memory
from ebr.training.resources.memory import HostWatch, Room, SavedBytes

GIB = 2**30


@pytest.fixture
def machine(monkeypatch):
    """A machine of 64 GiB, of which 24 are taken."""
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=40 * GIB))


class Groups:
    """A folder as the kernel shows control groups in, and the file that says where a process stands."""

    def __init__(self, folder):
        self.top, self.own = folder / "cgroup", folder / "own"

    def version_2(self, group, limit, used, **stat):
        self._group(self.top / group, {"memory.max": limit, "memory.current": used}, stat)

    def version_1(self, group, limit, used, **stat):
        self._group(self.top / "memory" / group, {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used}, stat)

    def _group(self, folder, files, stat):
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in {**files, "memory.stat": "".join(f"{key} {value}\n" for key, value in stat.items())}.items():
            (folder / name).write_text(f"{value}\n", encoding="utf-8")

    def stand_in(self, *lines):
        self.own.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def limit(self):
        return min(room.limit for room in (memory.machine_room(), *memory.container_rooms(self.top, self.own)))

    def available(self):
        return host_memory.free_host_bytes(self.top, self.own)


@pytest.fixture
def groups(tmp_path, machine):
    return Groups(tmp_path)


# ---------------------------------------------------------------- the limit, and what is left


def test_without_a_container_the_machine_is_the_limit(groups):
    assert (groups.limit(), groups.available()) == (64 * GIB, 40 * GIB)


def test_files_that_the_kernel_holds_for_a_container_do_not_count_as_its_use(groups):
    groups.stand_in("0::/job")
    groups.version_2("job", 16 * GIB, 12 * GIB, inactive_file=3 * GIB, active_file=2 * GIB, anon=7 * GIB)
    assert (groups.limit(), groups.available()) == (16 * GIB, 9 * GIB)


def test_group_around_the_own_one_can_be_what_limits(groups):
    groups.stand_in("0::/pod/container")
    groups.version_2("pod/container", "max", 2 * GIB)
    groups.version_2("pod", 8 * GIB, 5 * GIB)
    assert (groups.limit(), groups.available()) == (8 * GIB, 3 * GIB)


def test_tightest_of_several_groups_may_have_the_larger_limit(groups):
    groups.stand_in("0::/pod/container")
    groups.version_2("pod/container", 6 * GIB, 1 * GIB)
    groups.version_2("pod", 8 * GIB, 7 * GIB)
    assert (groups.limit(), groups.available()) == (6 * GIB, 1 * GIB)


def test_container_that_knows_its_group_by_the_path_of_the_host_reads_its_top_one(groups):
    groups.stand_in("5:cpu,cpuacct:/docker/4711", "4:memory:/docker/4711", "0::/")
    groups.version_1("", 4 * GIB, 3 * GIB, total_inactive_file=2 * GIB, inactive_file=1, total_active_file=0)
    assert (groups.limit(), groups.available()) == (4 * GIB, 3 * GIB)


def test_largest_number_of_version_1_means_no_limit(groups):
    groups.stand_in("4:memory:/job")
    groups.version_1("job", 9223372036854771712, 3 * GIB)
    assert (groups.limit(), groups.available()) == (64 * GIB, 40 * GIB)


def test_container_with_more_in_use_than_its_limit_has_nothing_left(groups):
    groups.stand_in("0::/job")
    groups.version_2("job", 1 * GIB, 2 * GIB)
    assert groups.available() == 0


def test_gpu_has_what_the_driver_has_left_and_what_torch_holds_unused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 28 * GIB)
    assert memory.available_bytes(torch.device("cuda:0")) == 7 * GIB


def test_this_process_has_memory_and_its_machine_more():
    assert 0 < memory.resident_bytes() < memory.machine_room().limit


# ---------------------------------------------------------------- the watch


class Host:
    """A machine of 100 bytes, read and swept by the watch; each look takes no time."""

    def __init__(self):
        self.now, self.used, self.held, self.looks, self.sweep_s = 0.0, 50, 0, 0, 0.0
        self.watch = HostWatch(read=self.read, release=self.release, clock=lambda: self.now)

    def read(self):
        self.looks += 1
        return Room(100, self.used + self.held)

    def release(self):
        self.held = 0
        self.now += self.sweep_s

    def pressure_at(self, used, *, held=0):
        self.now += 1.0
        self.used, self.held = used, held
        return self.watch.pressure()


def test_watch_speaks_above_nine_tenths_and_not_at_them():
    host = Host()
    assert [host.pressure_at(used) for used in (50, 90, 91)] == [False, False, True]
    assert host.watch.words() == "0.0 of 0.0 GiB of memory are in use (91%)"


def test_one_shortage_is_said_once_unless_it_grows_or_comes_back():
    host = Host()
    assert [host.pressure_at(used) for used in (92, 92, 94, 95)] == [True, False, False, True]
    assert [host.pressure_at(used) for used in (80, 92)] == [False, True]


def test_memory_that_is_merely_held_is_given_back_in_silence():
    host = Host()
    assert not host.pressure_at(60, held=35)
    assert host.held == 0


def test_watch_looks_a_few_times_a_second_however_often_it_is_asked():
    host = Host()
    for _ in range(1000):  # ten seconds of micro-batches
        host.now += 0.01
        host.watch.pressure()
    assert host.looks <= 41


def test_giving_back_takes_a_tenth_of_the_time_at_most():
    host = Host()
    host.sweep_s = 0.5
    assert not host.pressure_at(60, held=35)
    host.now, host.held = host.now + 4.9, 35
    assert not host.watch.pressure()
    assert host.held == 35  # left alone
    host.now += 0.2
    host.watch.pressure()
    assert host.held == 0


def test_what_the_process_has_counts_against_the_container(monkeypatch, machine):
    monkeypatch.setattr(memory, "container_rooms", lambda: [Room(10 * GIB, 2 * GIB)])
    monkeypatch.setattr(memory, "resident_bytes", lambda: 7 * GIB)
    assert memory.fullest_room() == Room(10 * GIB, 7 * GIB)


def test_giving_back_unused_memory_works_here():
    memory.release_unused()


# ---------------------------------------------------------------- what autograd saves


def test_saved_bytes_are_those_of_the_activations_and_not_of_the_weights():
    layer, rows = torch.nn.Linear(10, 10), torch.ones(4, 10)
    with SavedBytes(layer.parameters()) as saved:
        vectors = layer(rows).relu().exp()
    # 4 × 10 float32 each: the layer's input, what relu gave, what exp gave.
    assert saved.total == 3 * 160
    vectors.sum().backward()
    assert layer.weight.grad is not None


def test_storage_that_is_saved_in_several_views_counts_once():
    rows = torch.ones(4, 10, requires_grad=True)
    with SavedBytes() as saved:
        kept = (rows[0] * rows[1], rows.T.sin())
    assert saved.total == 160
    del kept


def test_weights_count_unless_they_are_named():
    layer, rows = torch.nn.Linear(10, 10, bias=False), torch.ones(4, 10, requires_grad=True)
    with SavedBytes() as saved:
        kept = layer(rows)
    assert saved.total == 160 + 400
    del kept


def test_checkpointed_block_saves_its_input_alone():
    layer, rows = torch.nn.Linear(10, 10), torch.ones(4, 10)
    with SavedBytes(layer.parameters()) as saved:
        kept = checkpoint(lambda inputs: layer(inputs).relu().exp(), rows, use_reentrant=False)
    assert saved.total == 160
    del kept


def test_nothing_is_counted_after_the_block():
    rows = torch.ones(4, 10, requires_grad=True)
    with SavedBytes() as saved:
        pass
    kept = rows.exp()
    assert saved.total == 0
    del kept


# ---------------------------------------------------------------- the advice


def test_advice_names_four_options_in_order_as_the_front_end_spells_them():
    spelling = {"train_batch_size": "batch_size"}
    _, *options = memory.out_of_memory_advice(lambda name: spelling.get(name, name)).split("\n")
    assert [line.split()[1].rstrip(":,") for line in options] == [
        "batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "max_seq_length"
    ]  # fmt: skip
