import itertools
import json

import pytest

from fi_cachestore.environment.facets import ABSENT, Device, Environment, Facet, Role, Unknown
from fi_cachestore.environment.identity import Environments, collect
from fi_cachestore.environment.manifest import manifest
from fi_cachestore.environment.probes import CPU_PROBES, CUDA_PROBES, KERNEL_VARIABLES, Probe
from fi_cachestore.errors import UnsupportedValueError
from fi_cachestore.keys.canonical import encode

GPU = Device("cuda", 0)
KNOWN = {probe.name: f"{probe.name}-1" for probe in CUDA_PROBES}


def stub_probes(values):
    def probe(name, role):
        def function(device):
            value = values[name]
            if isinstance(value, Exception):
                raise value
            return value

        return Probe(name, role, function)

    return tuple(probe(p.name, p.role) for p in CUDA_PROBES)


def environment(**changes):
    return collect(GPU, stub_probes({**KNOWN, **changes}))


VALIDITY = [probe.name for probe in CUDA_PROBES if probe.role is Role.VALIDITY]
BACKENDS = [probe.name for probe in CUDA_PROBES if probe.role is Role.BACKEND]
PERFORMANCE = [probe.name for probe in CUDA_PROBES if probe.role is Role.PERFORMANCE]


def test_the_facets_of_the_design_are_there():
    assert {
        "flashinfer_version",
        "flashinfer_commit",
        "kernel_artifacts",
        "cuda_runtime",
        "gpu_name",
        "compute_capability",
        "sm_count",
    } <= set(VALIDITY)
    assert {"cublas", "cudnn", "cudnn_frontend", "cutlass_dsl"} <= set(BACKENDS)
    assert {"driver", "power_limit", "maximum_clocks", "torch"} <= set(PERFORMANCE)
    assert {"processor", "thread_count", "torch"} <= {probe.name for probe in CPU_PROBES if probe.role is Role.VALIDITY}


@pytest.mark.parametrize("name", VALIDITY)
def test_a_validity_facet_counts_for_every_runner(name):
    for backends in (None, (), ("cublas",)):
        assert environment().for_key(backends) != environment(**{name: "other"}).for_key(backends)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_facet_counts_only_for_runners_that_use_it(name):
    changed = environment(**{name: "other"})
    assert environment().for_key((name,)) != changed.for_key((name,))
    assert environment().for_key(None) != changed.for_key(None)
    others = tuple(other for other in BACKENDS if other != name)
    assert environment().for_key(others) == changed.for_key(others)


@pytest.mark.parametrize("name", PERFORMANCE)
def test_a_performance_facet_counts_only_when_strict(name):
    changed = environment(**{name: "other"})
    assert environment().for_key(None) == changed.for_key(None)
    assert environment().for_key(None, strict=True) != changed.for_key(None, strict=True)
    assert environment().performance() != changed.performance()


@pytest.mark.parametrize("name", VALIDITY + BACKENDS)
@pytest.mark.parametrize("value", [None, OSError("no device")], ids=["nothing", "error"])
def test_what_cannot_be_determined_makes_no_key_and_is_named(name, value):
    gaps = environment(**{name: value}).for_key(None)
    assert isinstance(gaps, tuple)
    assert [(gap.subject, gap.field) for gap in gaps] == [("environment", name)]
    assert "cannot be determined" in gaps[0].why


def test_an_unknown_backend_harms_only_runners_that_use_it():
    broken = environment(cudnn=None)
    assert isinstance(broken.for_key(("cublas",)), dict)
    assert isinstance(broken.for_key(("cudnn",)), tuple)


def test_the_kind_of_device_counts_by_itself():
    facets = environment().facets
    assert Environment(GPU, facets).for_key(None) != Environment(Device("xpu", 0), facets).for_key(None)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"__version__": "0.0.0+unknown"}, "flashinfer_version"),
        ({"__git_commit__": None, "__git_version__": "unknown"}, "flashinfer_commit"),
        ({"__git_commit__": "unknown"}, "flashinfer_commit"),
    ],
    ids=str,
)
def test_a_flashinfer_that_does_not_know_itself_makes_no_key(monkeypatch, changes, name):
    for variable, value in changes.items():
        monkeypatch.setattr(f"flashinfer.version.{variable}", value, raising=False)
    gaps = collect(Device("cpu"), CPU_PROBES).for_key(())
    assert [gap.field for gap in gaps] == [name]


def test_an_absent_library_is_a_fact():
    assert isinstance(environment(cutlass_dsl=ABSENT).for_key(None), dict)


def test_unknown_equals_nothing():
    unknown = Unknown("no reason")
    assert unknown != unknown  # noqa: PLR0124
    assert unknown != "unknown: no reason"
    assert environment(gpu_name=None).facets != environment(gpu_name=None).facets
    assert Facet("a", Role.VALIDITY, Unknown("x")) != Facet("a", Role.VALIDITY, Unknown("x"))
    with pytest.raises(TypeError):
        hash(unknown)
    with pytest.raises(UnsupportedValueError):
        encode([unknown])


def test_an_unknown_performance_facet_is_recorded_as_unknown():
    assert environment(driver=None).performance()["driver"] is None
    assert isinstance(environment(driver=None).for_key(None), dict)


def test_a_contract_that_names_no_such_facet_makes_no_key():
    gaps = environment().for_key(("sundial",))
    assert [gap.field for gap in gaps] == ["sundial"]


def test_backends_do_not_count_for_cpu_tensors():
    cpu = collect(Device("cpu"), CPU_PROBES)
    assert cpu.for_key(("cublas", "cudnn")) == cpu.for_key(())
    assert isinstance(cpu.for_key(()), dict)


ASKED = [
    (index, backends, strict) for index in (0, 1) for backends in (None, (), ("cudnn",), ("cublas", "cudnn")) for strict in (False, True)
]


def test_devices_have_their_own_environments_probed_once():
    calls = []

    def probes_for(device):
        calls.append(device)
        return stub_probes({**KNOWN, "gpu_name": f"GPU {device.index}"})

    environments = Environments(probes_for)
    first, second = environments.of(Device("cuda", 0)), environments.of(Device("cuda", 1))
    assert environments.of(Device("cuda", 0)) is first
    assert calls == [Device("cuda", 0), Device("cuda", 1)]
    assert first.for_key(()) != second.for_key(())
    assert first.device_model() != second.device_model()
    facets = [environments.for_key(Device("cuda", index), backends, strict=strict) for index, backends, strict in ASKED]
    assert facets == [environments.of(Device("cuda", index)).for_key(backends, strict=strict) for index, backends, strict in ASKED]
    assert len({tuple(found) + tuple(found.values()) for found in facets}) == len(ASKED), "each question has an answer of its own"
    again = [environments.for_key(Device("cuda", index), backends, strict=strict) for index, backends, strict in ASKED]
    assert list(map(id, again)) == list(map(id, facets))
    assert len(calls) == 2


def test_what_a_key_lacks_is_known_too():
    environments = Environments(lambda _: (Probe("driver", Role.VALIDITY, lambda _: None),))
    (gap,) = environments.for_key(Device("cpu"), (), strict=False)
    assert gap.field == "driver"
    assert environments.for_key(Device("cpu"), (), strict=False) == (gap,)


@pytest.mark.parametrize("name", [*(name for name in KERNEL_VARIABLES if "*" not in name), "B12X_DENSE_ATOM_24", "FLASHINFER_NVFP4_4OVER6"])
def test_variables_that_change_kernels_count(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    before = collect(Device("cpu"), CPU_PROBES).for_key(())
    monkeypatch.setenv(name, "")
    assert collect(Device("cpu"), CPU_PROBES).for_key(()) == before
    found = [before]
    for value in ("1", "2"):
        monkeypatch.setenv(name, value)
        found.append(collect(Device("cpu"), CPU_PROBES).for_key(()))
    assert all(first != second for first, second in itertools.combinations(found, 2))


def test_other_variables_do_not_count(monkeypatch):
    before = collect(Device("cpu"), CPU_PROBES).for_key(())
    for name in ("HOME", "PYTHONHASHSEED", "RANK", "FLASHINFER_LOGLEVEL", "B12X_COMPILE_CACHE_DIR", "b12x_lower"):
        monkeypatch.setenv(name, "7")
    assert collect(Device("cpu"), CPU_PROBES).for_key(()) == before


def test_the_manifest_is_for_people_and_has_one_name_per_environment():
    name, content = manifest(environment(driver=None))
    document = json.loads(content)
    assert document["facets"]["gpu_name"] == {"role": "validity", "value": "gpu_name-1", "hint": ""}
    assert document["facets"]["driver"]["value"] is None
    assert document["facets"]["driver"]["hint"]
    assert manifest(environment())[0] == manifest(environment())[0]
    assert manifest(environment())[0] != manifest(environment(cudnn="2"))[0]
    assert name.endswith(".json")


def test_the_real_probes_of_this_machine_find_something():
    cpu = collect(Device("cpu"), CPU_PROBES)
    assert isinstance(cpu, Environment)
    assert cpu.unknown() == ()
