"""The Python face: the names and signatures that programs written for PCCL 1.0 use, the exceptions, what is refused
before anything is sent, and the calls of two peers on loopback."""

import array
import asyncio
import builtins
import inspect
import os
import pickle
import re
import signal
import statistics
import subprocess
import textwrap
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from processes import background, run_python

import pccl
from pccl import DataType, ReduceOp, Result, errors
from pccl.operand import pair

# --------------------------------------------------------------------------------------------------------- the names --

REFERENCE_NAMES = {
    "Communicator",
    "MasterNode",
    "ReduceOp",
    "Attribute",
    "SharedStateSyncStrategy",
    "DataType",
    "DistributionHint",
    "QuantizationAlgorithm",
    "ReduceOperandDescriptor",
    "QuantizationOptions",
    "ReduceDescriptor",
    "ReduceOpDescriptor",
    "TensorInfo",
    "SharedState",
    "SharedStateSyncInfo",
    "ReduceInfo",
    "AsyncReduceHandle",
    "Result",
    "DeviceType",
    "PCCLError",
    "cuda",
}

ENUMS = {
    "ReduceOp": {"SUM": 0, "AVG": 1, "PROD": 2, "MAX": 3, "MIN": 4, "BAND": 5, "BOR": 6, "BXOR": 7},
    "Attribute": {
        "GLOBAL_WORLD_SIZE": 1,
        "LOCAL_WORLD_SIZE": 2,
        "NUM_DISTINCT_PEER_GROUPS": 3,
        "LARGEST_PEER_GROUP_WORLD_SIZE": 4,
    },
    "SharedStateSyncStrategy": {"ENFORCE_POPULAR": 0, "RECEIVE_ONLY": 1, "SEND_ONLY": 2},
    "DataType": {
        "UINT8": 0,
        "INT8": 1,
        "INT16": 2,
        "UINT16": 3,
        "UINT32": 4,
        "INT32": 5,
        "UINT64": 6,
        "INT64": 7,
        "FLOAT16": 8,
        "BFLOAT16": 9,
        "FLOAT": 10,
        "DOUBLE": 11,
    },
    "DeviceType": {"CPU": 0, "CUDA": 1},
    "DistributionHint": {"NONE": 0, "NORMAL": 1, "UNIFORM": 2},
    "QuantizationAlgorithm": {
        "NONE": 0,
        "MIN_MAX": 1,
        "ZERO_POINT_SCALE": 2,
        "BF16": 16,
        "FP16": 17,
        "INT8": 18,
        "INT4": 19,
        "FP8_E4M3": 20,
        "E3M0": 21,
        "TOP_K": 22,
        "INT_SUM": 23,
    },
}

# name, positional parameters, keyword-only parameters: those of the reference; ours may add defaults behind them.
SIGNATURES = [
    ("Communicator", ["address", "peer_group", "p2p_connection_pool_size"], []),
    ("Communicator.connect", ["self", "n_attempts"], []),
    ("Communicator.get_attribute", ["self", "attribute"], []),
    ("Communicator.update_topology", ["self"], []),
    ("Communicator.are_peers_pending", ["self"], []),
    ("Communicator.optimize_topology", ["self"], []),
    ("Communicator.sync_shared_state", ["self", "shared_state", "strategy"], []),
    (
        "Communicator.all_reduce",
        ["self", "send", "recv"],
        ["op", "tag", "operand_descriptor", "quantization_options"],
    ),
    (
        "Communicator.all_reduce_async",
        ["self", "send", "recv"],
        ["op", "tag", "operand_descriptor", "quantization_options"],
    ),
    ("Communicator.all_reduce_multiple_with_retry", ["self", "descriptors"], ["max_in_flight"]),
    ("MasterNode", ["listen_address"], []),
    ("MasterNode.run", ["self"], []),
    ("MasterNode.interrupt", ["self"], []),
    ("ReduceOperandDescriptor", ["datatype", "distribution_hint"], []),
    ("QuantizationOptions", ["quantized_datatype", "algorithm"], []),
    ("ReduceDescriptor", ["count", "op", "tag", "operand_descriptor", "quantization_options"], []),
    ("ReduceOpDescriptor.from_torch", ["send", "recv", "descriptor"], []),
    ("ReduceOpDescriptor.from_numpy", ["send", "recv", "descriptor"], []),
    ("TensorInfo.from_torch", ["tensor", "name"], ["allow_content_inequality"]),
    ("TensorInfo.from_numpy", ["tensor", "name"], ["allow_content_inequality"]),
    ("SharedState.push_revision", ["self"], []),
    ("SharedStateSyncInfo", ["tx_bytes", "rx_bytes"], []),
    ("ReduceInfo", ["local_world_size", "tx_bytes", "rx_bytes"], []),
    ("AsyncReduceHandle.wait", ["self"], []),
    ("PCCLError", ["result", "func_name"], []),
]


def test_reference_names_are_exported():
    assert set(pccl.__all__) >= REFERENCE_NAMES


def test_all_is_sorted_and_equals_the_namespace():
    assert pccl.__all__ == sorted(pccl.__all__)
    public = {
        name
        for name, value in vars(pccl).items()
        if not name.startswith("_") and (name == "cuda" or not isinstance(value, types.ModuleType))
    }
    assert public == set(pccl.__all__)


def test_pccl_module_reexports():
    import pccl._pccl

    assert all(getattr(pccl._pccl, name) is getattr(pccl, name) for name in pccl.__all__)


@pytest.mark.parametrize("name", ENUMS)
def test_enum_values(name):
    assert {member.name: member.value for member in getattr(pccl, name)} == ENUMS[name]


def test_result_is_the_list_of_the_header():
    from pccl import _core

    header = os.path.join(pccl.get_include(), "pccl.h")
    with open(header) as file:
        entries = [line.split("(", 1)[1].split(",") for line in file if line.lstrip().startswith("X(pccl")]
    assert {entry[2].strip(): int(entry[1]) for entry in entries} == {r.name: r.value for r in Result}
    assert all(_core.result_name(r) == r.name for r in Result)
    assert _core.result_name(9999) == "UNKNOWN"


@pytest.mark.parametrize(("name", "positional", "keyword_only"), SIGNATURES)
def test_signatures(name, positional, keyword_only):
    target = pccl
    for part in name.split("."):
        target = getattr(target, part)
    parameters = inspect.signature(target).parameters.values()
    ours = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in ours][: len(positional)] == positional
    assert all(p.default is not p.empty for p in ours[len(positional) :])
    keywords = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert set(keyword_only) <= set(keywords)
    assert all(p.default is not p.empty for key, p in keywords.items() if key not in ("op", *keyword_only))


def test_defaults_of_the_reference():
    parameters = inspect.signature(pccl.Communicator.connect).parameters
    assert parameters["n_attempts"].default == 5
    many = inspect.signature(pccl.Communicator.all_reduce_multiple_with_retry).parameters
    assert many["max_in_flight"].default == 4
    assert inspect.signature(pccl.Communicator.all_reduce).parameters["tag"].default == 0
    options = pccl.QuantizationOptions()
    assert (options.quantized_datatype, options.algorithm) == (DataType.UINT8, pccl.QuantizationAlgorithm.MIN_MAX)
    assert pccl.ReduceOperandDescriptor(DataType.FLOAT).distribution_hint is pccl.DistributionHint.NONE


@pytest.mark.parametrize("datatype", DataType)
def test_numpy_dtypes_round_trip(datatype):
    dtype = datatype.to_numpy_dtype()
    assert DataType.from_numpy_dtype(dtype) is datatype
    assert dtype.itemsize == datatype.itemsize


@pytest.mark.parametrize("dtype", ["complex64", "bool", ">f4", "U3", "float128"])
def test_foreign_numpy_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="not supported"):
        DataType.from_numpy_dtype(np.dtype(dtype))


def test_cuda_is_not_built():
    assert pccl.cuda.is_available() is False


def test_include_and_library_directories():
    assert {"pccl.h", "ccoip.h", "ccoip_inet.h"} <= set(os.listdir(pccl.get_include()))
    assert any(name.startswith("libpccl.") for name in os.listdir(pccl.get_library_dir()))


# ------------------------------------------------------------------------------------------------------------ import --


def test_import_is_quick_and_draws_in_no_torch():
    code = """
        import sys, time, numpy
        start = time.perf_counter()
        import pccl
        print(time.perf_counter() - start)
        assert not {"torch", "asyncio", "click", "ml_dtypes"} & set(sys.modules), sorted(sys.modules)
    """
    runs = [run_python(code) for _ in range(5)]
    assert [run.stderr for run in runs] == [""] * 5
    assert statistics.median(float(run.stdout) for run in runs) < 0.15


def test_import_reads_no_environment():
    run = run_python("import pccl; print('ok')", PCCL_NONSENSE="1", PCCL_OP_TIMEOUT="nonsense")
    assert (run.stdout, run.stderr) == ("ok\n", "")


# ------------------------------------------------------------------------------------------------------------ errors --

BUILTIN_OF = {
    "NOT_INITIALIZED": RuntimeError,
    "INVALID_ARGUMENT": ValueError,
    "INVALID_USAGE": RuntimeError,
    "TOO_FEW_PEERS": RuntimeError,
    "MASTER_CONNECTION_FAILED": ConnectionError,
    "RANK_CONNECTION_FAILED": ConnectionError,
    "RANK_CONNECTION_LOST": ConnectionError,
    "TIMEOUT": TimeoutError,
    "IN_PROGRESS": TimeoutError,
    "EVICTED": ConnectionError,
    "REFUSED": ConnectionError,
    "MISMATCH": ValueError,
    "PROTOCOL_ERROR": ConnectionError,
    "NO_MEMORY": MemoryError,
    "SYSTEM_ERROR": OSError,
    "FORKED": RuntimeError,
}


@pytest.mark.parametrize("result", [r for r in Result if r is not Result.SUCCESS])
def test_each_code_has_its_exception(result):
    error = errors.error_from(int(result), "call")
    assert isinstance(error, pccl.PCCLError)
    assert isinstance(error, BUILTIN_OF.get(result.name, Exception))
    assert error.result is result
    assert str(error).startswith(f"call: {result.name}: ")


def test_the_tree_in_the_docstring_is_the_real_one():
    tree = errors.__doc__
    for name in errors.__all__:
        cls = getattr(errors, name)
        if not issubclass(cls, pccl.PCCLError) or cls is pccl.PCCLError:
            continue
        line = next(line for line in tree.splitlines() if f" {name}" in line)
        if "(" in line:
            assert issubclass(cls, getattr(builtins, line.split("(")[1].split(")")[0])), name


def test_error_says_who_where_and_why():
    record = pccl.ErrorRecord(
        code=8,
        errno=104,
        peer_id=3,
        peer_address="10.0.0.7:4242",
        phase="all_reduce",
        epoch=12,
        tag=5,
        seq=77,
        bytes_done=10,
        bytes_total=40,
        last_heard_ms=180,
        message="the connection was reset",
        hint="retry with the survivors",
    )
    error = errors.error_from(8, "all_reduce", record)
    assert str(error) == (
        "all_reduce: RANK_CONNECTION_LOST: the connection was reset (peer 3 at 10.0.0.7:4242, in all_reduce, epoch 12, "
        "op tag 5 seq 77, 10 of 40 bytes done, last heard 180 ms ago, ECONNRESET). Hint: retry with the survivors"
    )
    assert error.errno == 104
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.record, str(copy)) == (type(error), record, str(error))


def test_error_of_the_reference_constructor():
    error = pccl.PCCLError(Result.TOO_FEW_PEERS, "all_reduce")
    assert error.result == Result.TOO_FEW_PEERS
    assert str(error) == "all_reduce: TOO_FEW_PEERS: too few peers in the group"


# ----------------------------------------------------------------------------------------------------------- buffers --


def read_only(values):
    values.flags.writeable = False
    return values


class DlpackOnly:
    """Exports an array through DLPack and nothing else, from whichever device it claims."""

    def __init__(self, values, device=(1, 0)):
        self.values, self.device = values, device

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


BASE = np.arange(8, dtype=np.float32)
REFUSED = {
    "read-only in place": (lambda: (read_only(np.zeros(4)), None), "read-only"),
    "read-only recv": (lambda: (np.zeros(4), read_only(np.zeros(4))), "recv is read-only"),
    "bytes in place": (lambda: (b"1234", None), "read-only"),
    "strided": (lambda: (BASE[::2], None), "not contiguous"),
    "transposed": (lambda: (np.zeros((2, 3)).T, None), "not contiguous"),
    "overlap": (lambda: (BASE[:4], BASE[1:5]), "overlap"),
    "dtype": (lambda: (np.zeros(4), np.zeros(4, np.float32)), "send is DOUBLE, recv is FLOAT"),
    "size": (lambda: (np.zeros(4), np.zeros(5)), "send has 4 elements, recv has 5"),
    "foreign dtype": (lambda: (np.zeros(4, complex), None), "not supported"),
    "byte order": (lambda: (np.zeros(4, ">f8"), None), "not supported"),
    "no memory": (lambda: ([1.0, 2.0], None), "list, which has no memory"),
    "none": (lambda: (None, None), "NoneType, which has no memory"),
    "strided memoryview": (lambda: (memoryview(bytearray(8))[::2], None), "not contiguous"),
    "dlpack device": (lambda: (DlpackOnly(np.zeros(4), (2, 0)), None), "DLPack device type 2"),
    "dlpack strided": (lambda: (DlpackOnly(np.zeros(8)[::2]), None), "not contiguous"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_buffers_are_refused(case):
    make, words = REFUSED[case]
    with pytest.raises(pccl.UnusableBufferError, match=words) as caught:
        pair(*make(), "all_reduce", None, None)
    assert isinstance(caught.value, ValueError)
    assert caught.value.result is Result.INVALID_ARGUMENT


def test_descriptor_must_fit_the_buffers():
    with pytest.raises(pccl.UnusableBufferError, match="says 5 elements, the buffers have 4"):
        pair(np.zeros(4), None, "all_reduce", 5, None)
    with pytest.raises(pccl.UnusableBufferError, match="says INT8, the buffers are DOUBLE"):
        pair(np.zeros(4), None, "all_reduce", None, DataType.INT8)


def test_sixteen_bit_integers_pass_as_bfloat16_when_the_descriptor_says_so():
    send, recv = pair(np.zeros(4, np.uint16), np.ones(4, np.uint16), "all_reduce", 4, DataType.BFLOAT16)
    assert (send.datatype, recv.datatype) == (DataType.BFLOAT16, DataType.BFLOAT16)


@pytest.mark.parametrize(
    ("make", "datatype", "count"),
    [
        (lambda: np.zeros((2, 3), np.int16), DataType.INT16, 6),
        (lambda: np.zeros(3, DataType.BFLOAT16.to_numpy_dtype()), DataType.BFLOAT16, 3),
        (lambda: np.array(1.5), DataType.DOUBLE, 1),
        (lambda: np.zeros(0, np.float32), DataType.FLOAT, 0),
        (lambda: bytearray(5), DataType.UINT8, 5),
        (lambda: array.array("f", [1, 2]), DataType.FLOAT, 2),
        (lambda: memoryview(array.array("q", [1, 2, 3])), DataType.INT64, 3),
        (lambda: DlpackOnly(np.zeros((2, 2), np.float16)), DataType.FLOAT16, 4),
    ],
)
def test_what_is_accepted(make, datatype, count):
    send, recv = pair(make(), None, "all_reduce", None, None)
    assert (send.datatype, send.count_elems, send.buffer.nbytes) == (datatype, count, count * datatype.itemsize)
    assert recv is send


def test_buffer_is_exported_while_held():
    data = bytearray(8)
    held, _ = pair(data, None, "all_reduce", None, None)
    with pytest.raises(BufferError):
        data.append(1)
    del held, _
    data.append(1)
    assert len(data) == 9


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(2, 3, dtype=torch.bfloat16)
    send, _ = pair(tensor, None, "all_reduce", None, None)
    assert (send.datatype, send.count_elems, send.buffer.address) == (DataType.BFLOAT16, 6, tensor.data_ptr())
    for datatype in DataType:
        assert DataType.from_torch_dtype(datatype.to_torch_dtype()) is datatype
    with pytest.raises(pccl.UnusableBufferError, match="device meta"):
        pair(torch.zeros(3, device="meta"), None, "all_reduce", None, None)
    with pytest.raises(pccl.UnusableBufferError, match="not contiguous"):
        pair(torch.zeros(2, 3).T, None, "all_reduce", None, None)
    with pytest.raises(ValueError, match="complex64"):
        DataType.from_torch_dtype(torch.complex64)
    info = pccl.TensorInfo.from_torch(torch.zeros(4), "w")
    assert (info.datatype, info.numel) == (DataType.FLOAT, 4)


# ------------------------------------------------------------------------------------------------------------- state --


def test_tensor_info_follows_its_tensor():
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(100))
    info = pccl.TensorInfo.from_torch(parameter, "p")
    parameter.data = torch.ones(100)
    assert info.operand.buffer.address == parameter.data_ptr()
    array = np.zeros(10)
    other = pccl.TensorInfo(array, "a")
    array.resize(20, refcheck=False)
    with pytest.raises(pccl.UnusableBufferError, match=r"'a' had 10 elements of DOUBLE .* has 20 of DOUBLE now"):
        assert other.operand


def test_shared_state_checks_its_tensors():
    weights = np.zeros(3)
    state = pccl.SharedState([pccl.TensorInfo.from_numpy(weights, "w")])
    assert state.revision == 0
    state.push_revision()
    state.revision += 1
    assert state.revision == 2
    with pytest.raises(ValueError, match="revision"):
        state.revision = -1
    with pytest.raises(ValueError, match="two tensors have the name 'w'"):
        pccl.SharedState([pccl.TensorInfo.from_numpy(weights, "w"), pccl.TensorInfo.from_numpy(np.ones(2), "w")])
    with pytest.raises(ValueError, match="at least one"):
        pccl.SharedState([])
    with pytest.raises(pccl.UnusableBufferError, match="read-only"):
        pccl.TensorInfo.from_numpy(read_only(np.zeros(3)), "w")
    with pytest.raises(ValueError, match="name"):
        pccl.TensorInfo.from_numpy(weights, "")


# ----------------------------------------------------------------------------------------------------- running peers --


@pytest.fixture
def master():
    with pccl.MasterNode("127.0.0.1:0") as node:
        yield f"127.0.0.1:{node.port}"


def gather(comm, world):
    while comm.world_size < world:
        if comm.are_peers_pending():
            comm.update_topology()


def run_peers(master, count, body, **options):
    """``body(comm, index)`` in one thread a peer, once all have joined; its results in order."""

    def peer(index):
        with pccl.Communicator(master, **options) as comm:
            gather(comm, count)
            return body(comm, index)

    with ThreadPoolExecutor(count) as pool:
        return [future.result(60) for future in [pool.submit(peer, i) for i in range(count)]]


def test_bad_arguments_of_the_communicator():
    for address in ("", "host:port", "host:70000", "a b:1", "[::1:5", "[::1]5"):
        with pytest.raises(pccl.InvalidArgumentError, match="is not an address"):
            pccl.Communicator(address)
    with pytest.raises(ValueError, match="peer_group"):
        pccl.Communicator("localhost:1", -1)
    with pytest.raises(ValueError, match="dead_timeout"):
        pccl.Communicator("localhost:1", dead_timeout=0)


def test_calls_before_connect_are_invalid_usage():
    with (
        pccl.MasterNode("127.0.0.1:0") as node,
        pytest.raises(pccl.InvalidUsageError),
    ):
        pccl.Communicator(f"127.0.0.1:{node.port}").update_topology()


def test_connect_without_a_master_fails_after_its_attempts():
    comm = pccl.Communicator("127.0.0.1:1")
    start = time.monotonic()
    with pytest.raises(pccl.MasterConnectionFailedError, match=r"127\.0\.0\.1:1: .* \(2 attempts in 1\.\d s\)"):
        comm.connect(n_attempts=2)
    assert 0.9 < time.monotonic() - start < 3
    comm.close()


def test_two_peers_reduce(master):
    def body(comm, index):
        data = np.full(1000, index + 1, np.float32)
        out = np.zeros_like(data)
        info = comm.all_reduce(data, out, op=ReduceOp.SUM)
        comm.all_reduce(data, op="avg", tag=7)
        members = comm.members
        assert sum(member.is_self for member in members) == 1
        assert sorted(member.rank for member in members) == [0, 1]
        assert comm.stats()["ops_committed"] >= 2
        assert comm.epoch >= 1
        assert comm.get_attribute(pccl.Attribute.GLOBAL_WORLD_SIZE) == 2
        return info.local_world_size, out.tolist(), data.tolist()

    for world, total, mean in run_peers(master, 2, body):
        assert (world, total, mean) == (2, [3.0] * 1000, [1.5] * 1000)


BAD_ARGUMENTS = {
    "op_timeout": (lambda comm: comm.all_reduce(np.ones(3), op_timeout="soon"), "op_timeout must be a time"),
    "op": (lambda comm: comm.all_reduce(np.ones(3), op=77), "op must be one of sum, avg, .* not 77"),
    "codec": (lambda comm: comm.all_reduce(np.ones(3), codec=8), "codec must be a name or a Codec"),
    "block": (lambda comm: comm.all_reduce(np.ones(3), codec=pccl.Codec("int8", block=33)), "a block has 32, 64"),
    "weight": (
        lambda comm: comm.all_reduce(np.ones(3), op="avg", weight=2**48 + 1),
        "weight must be a whole number from 0 to 2\\*\\*48",
    ),
    "scale": (lambda comm: comm.all_reduce(np.ones(3), scale="much"), "scale must be a number"),
    "broadcast": (lambda comm: comm.broadcast(None), "tensor is None"),
    "send": (lambda comm: comm.send(None, 0), "tensor is None"),
    "recv": (lambda comm: comm.recv(None), "tensor is None"),
    "reduce": (lambda comm: comm.reduce(None), "send is None"),
    "scatter": (lambda comm: comm.scatter(np.ones(2), None), "recv is None"),
    "all_to_all": (lambda comm: comm.all_to_all(None), "pass recv"),
    "in place": (lambda comm: comm.all_to_all(BASE, BASE), "the buffers overlap"),
    "float counts": (
        lambda comm: comm.all_gather(np.ones(1), counts=[1.0, 1.0]),
        "each of counts must be a whole number .* not 1.0",
    ),
    "negative counts": (
        lambda comm: comm.all_gather(np.ones(1), counts=[-1, -1]),
        "each of counts must be a whole number .* not -1",
    ),
    "half a complex number": (lambda comm: comm.all_to_all(np.ones(3, "c8")), "elements"),
    "strategy": (
        lambda comm: comm.sync_shared_state(pccl.SharedState([pccl.TensorInfo(np.ones(3), "t")]), "mine"),
        "strategy must be one of enforce_popular, receive_only, send_only, not 'mine'",
    ),
}


def test_bad_arguments_are_refused_at_once_and_by_name(master):
    def body(comm, index):
        for call, text in BAD_ARGUMENTS.values():
            with pytest.raises(pccl.InvalidArgumentError, match=text):
                call(comm)
        data = np.ones(3)
        comm.all_reduce(data, op_timeout=float("inf"))
        return data.tolist()

    assert run_peers(master, 2, body) == [[2.0] * 3] * 2


ARRAY = np.zeros(4, np.float32)
READ_ONLY = np.zeros(4, np.float32)
READ_ONLY.flags.writeable = False
NO_TENSORS = ("x", 1.5, -1, 2**70, [1.0, 2.0], object(), np.zeros(4, "U3"), np.zeros(4, ">f4"), np.zeros((4, 2))[:, 1])
WRONG = {
    "number": ("x", 1.5, -1, 2**70, [1, 2], object(), ARRAY, np.zeros(2, "i4,i4")),
    "real": ("x", [1, 2], object(), ARRAY, 1j, 10**400),
    "time": ("x", "5", 0, -1, float("nan"), [1, 2], object(), ARRAY, 10**400),
    "wait": ("x", float("nan"), [1, 2], object(), ARRAY, 10**400),
    "choice": ("x", 1.5, 99, -1, 2**70, [1, 2], object(), ARRAY, np.zeros(2, "i4,i4")),
    "flag": (ARRAY,),
    "text": (1.5, -1, [1, 2], object(), ARRAY, "a\0b", "\ud800"),
    "list": (1.5, -1, object(), "x", [None], [1.5], [-1], [2**70], [object()]),
    "record": ("x", 1.5, -1, [1, 2], object(), ARRAY),
    "tensor": (*NO_TENSORS, READ_ONLY),
    "input": NO_TENSORS,
    "array": ("x", object(), np.zeros(4, "U3")),
    "dtype": ("x", 1.5, -1, [1, 2], object(), ARRAY),
    "bytes": ("x", 1.5, [1, 2], object(), ARRAY),
}
KINDS = {
    "address": "text", "advertise": "text", "algorithm": "choice", "allow_content_inequality": "flag",
    "async_op": "flag", "attribute": "choice", "codec": "record", "congestion": "text", "connect_timeout": "time",
    "counts": "list", "dead_timeout": "time", "descriptor": "record", "descriptors": "list", "dtype": "dtype",
    "group": "record", "ifname": "text", "join_timeout": "time", "listen_address": "text", "max_in_flight": "number",
    "n_attempts": "number", "name": "text", "observer": "flag", "op": "choice", "op_timeout": "time",
    "operand_descriptor": "record", "p2p_connection_pool_size": "number", "peer_group": "number", "port_range": "list",
    "quantization_options": "record", "ranks": "list", "recv": "tensor", "recv_counts": "list", "residual": "tensor",
    "retry": "flag", "root": "number", "run_key": "bytes", "scale": "real", "send": "input", "shared_state": "record",
    "source": "number", "strategy": "choice", "tag": "number", "tensor": "tensor", "tensor_infos": "list",
    "tensors": "list", "timeout": "wait", "to": "number", "weight": "number",
}  # fmt: skip
NAMED_AS = {"listen_address": "address", "tensors": "tensor"}


def reduce_descriptor(**fields):
    plain = pccl.QuantizationOptions(algorithm=pccl.QuantizationAlgorithm.NONE)
    operand = pccl.ReduceOperandDescriptor(pccl.DataType.FLOAT)
    return pccl.ReduceDescriptor(**{"count": 4, "op": ReduceOp.SUM, "tag": 0, "operand_descriptor": operand,
                                    "quantization_options": plain, **fields})  # fmt: skip


def callables(comm):
    """Everything with arguments, and good ones for those that must be given."""
    one, two = np.zeros(4, np.float32), np.zeros(8, np.float32)
    handle = comm.all_reduce_async(np.zeros(1), tag=99, op_timeout=0.01)
    yield pccl.Communicator, {"address": "localhost:1"}
    yield pccl.MasterNode, {"listen_address": "127.0.0.1:0"}
    yield pccl.TensorInfo, {"tensor": one, "name": "a"}
    yield pccl.SharedState, {}
    yield pccl.ReduceOpDescriptor, {"send": one, "recv": one, "descriptor": reduce_descriptor()}
    yield pccl.DataType.from_numpy_dtype, {}
    yield handle.result, {}
    yield handle.wait, {}
    yield pccl.Codec.int_sum, {"group": comm, "tensor": one}
    made = {
        "connect": {}, "new_group": {}, "get_attribute": {}, "sync_shared_state": {"shared_state": pccl.SharedState(
            [pccl.TensorInfo(one, "a")])}, "all_reduce": {"send": one, "recv": one},
        "all_reduce_async": {"send": one, "recv": one}, "all_reduce_multiple_with_retry": {"descriptors": []},
        "all_reduce_coalesced": {"tensors": [one]}, "broadcast": {"tensor": one}, "scatter": {"send": two, "recv": one},
        "reduce": {"send": one, "recv": one}, "gather": {"send": one, "recv": two},
        "all_gather": {"send": one, "recv": two}, "reduce_scatter": {"send": two, "recv": one},
        "all_to_all": {"send": one, "recv": one}, "barrier": {}, "send": {"tensor": one, "to": 1},
        "recv": {"tensor": one},
    }  # fmt: skip
    for name in dir(comm):
        method = None if name.startswith("_") else inspect.getattr_static(comm, name)
        if callable(method) and len(inspect.signature(method).parameters) > 1:
            yield getattr(comm, name), made[name]


def wrong_calls(comm):
    for function, good in callables(comm):
        for name in inspect.signature(function).parameters:
            kind = KINDS[name]
            if (function.__name__, name) == ("int_sum", "tensor"):
                kind = "array"
            elif (function.__name__, name) == ("send", "tensor"):
                kind = "input"
            for value in WRONG[kind]:
                yield f"{function.__qualname__}({name}={value!r})", function, {**good, name: value}, name
    for field in ("count", "op", "tag", "operand_descriptor", "quantization_options"):
        for value in WRONG["record" if field.endswith(("r", "s")) else "choice" if field == "op" else "number"]:

            def reduce_many(field=field, value=value):
                descriptor = reduce_descriptor(**{field: value})
                comm.all_reduce_multiple_with_retry([pccl.ReduceOpDescriptor(np.zeros(4, "f4"), None, descriptor)])

            yield f"ReduceDescriptor({field}={value!r})", reduce_many, {}, field
    for field, kind in (("name", "choice"), ("bits", "number"), ("exponent", "number"), ("block", "number"),
                        ("stochastic", "flag"), ("nonfinite", "choice"), ("residual_decay", "real")):  # fmt: skip
        for value in WRONG["real" if field == "exponent" else kind]:  # -1 is a good one
            codec = pccl.Codec(**{"name": "int8", field: value})
            named = {"name": "codec", "bits": "bits", "residual_decay": "residual.decay"}.get(field, field)
            yield f"Codec({field}={value!r})", comm.all_reduce, {"send": np.zeros(4, "f4"), "codec": codec}, named


def test_wrong_arguments_are_named(master):
    """Of whatever type: never an error from somewhere inside, and nothing is sent."""

    def body(comm, _):
        if comm.rank != 0:
            comm.barrier(tag=1)
            return []
        unclear = []
        for what, function, arguments, name in wrong_calls(comm):
            try:
                function(**arguments)
                unclear.append(f"{what}: accepted")
            except (pccl.InvalidArgumentError, TypeError) as error:
                if not re.search(rf"\b{NAMED_AS.get(name, name)}", str(error)):
                    unclear.append(f"{what}: {error}")
            except Exception as error:
                unclear.append(f"{what}: {type(error).__name__}: {error}")
        comm.barrier(tag=1)
        return unclear

    assert run_peers(master, 2, body) == [[], []]


def test_blocks_of_complex_numbers(master):
    counts = [1, 2]

    def body(comm, _):
        index = comm.rank
        own = np.full(counts[index], 1j * (index + 1), np.complex64)
        both = np.concatenate([np.full(count, 1j * (at + 1), np.complex64) for at, count in enumerate(counts)])
        got = [comm.all_gather(own, counts=counts), comm.gather(own, counts=counts)]
        into = np.zeros(counts[index], np.complex64)
        got += [comm.reduce_scatter(both, into.copy(), counts=counts) / 2]
        got += [comm.scatter(both if index == 0 else None, into.copy(), counts=counts if index == 0 else None)]
        got += [comm.all_to_all(np.tile(own, 2), counts=[counts[index]] * 2, recv_counts=counts)]
        expected = [both, both if index == 0 else None, own, own, both]
        return [np.array_equal(a, b) if b is not None else a is None for a, b in zip(got, expected, strict=True)]

    assert run_peers(master, 2, body) == [[True] * 5] * 2


def test_int_sum_of_what_all_reduce_takes(master):
    torch = pytest.importorskip("torch")

    def body(comm, index):
        values = torch.full((8,), 2.0 + index)
        kinds = (values.bfloat16(), values.clone().requires_grad_(), values.numpy())
        return [pccl.Codec.int_sum(comm, kind).exponent for kind in kinds]

    (first, *rest), other = run_peers(master, 2, body)
    assert [first, *rest] == other
    assert rest == [first] * 2


def test_handles_by_tag_and_their_results(master):
    def body(comm, index):
        buffers = [np.full(64, 10 * tag + index, np.int64) for tag in range(8)]
        handles = [comm.all_reduce_async(buffer, op="sum", tag=tag) for tag, buffer in enumerate(buffers)]
        first = [handle.wait() for handle in reversed(handles)]
        again = [handle.wait() for handle in reversed(handles)]
        assert first == again
        assert [handle.done() for handle in handles] == [True] * 8
        return [success for success, _, _ in first], [int(buffer[0]) for buffer in buffers]

    for successes, values in run_peers(master, 2, body):
        assert successes == [True] * 8
        assert values == [20 * tag + 1 for tag in range(8)]


def test_awaitable_handles_leave_the_loop_free(master):
    def body(comm, index):
        async def reduce_all():
            ticks = 0

            async def tick():
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.01)
                    ticks += 1

            async def result(handle):
                return await handle

            ticker = asyncio.ensure_future(tick())
            buffers = [np.full(16, index + tag, np.int32) for tag in range(12)]
            if index == 1:
                await asyncio.sleep(0.2)
            infos = await asyncio.gather(
                *(result(comm.all_reduce_async(buffer, tag=tag)) for tag, buffer in enumerate(buffers))
            )
            ticker.cancel()
            return ticks, [info.local_world_size for info in infos], [int(buffer[0]) for buffer in buffers]

        return asyncio.run(reduce_all())

    for ticks, worlds, values in run_peers(master, 2, body):
        assert ticks >= 5
        assert worlds == [2] * 12
        assert values == [2 * tag + 1 for tag in range(12)]


def test_multiple_with_retry(master):
    def body(comm, index):
        none = pccl.QuantizationOptions(DataType.DOUBLE, pccl.QuantizationAlgorithm.NONE)
        operand = pccl.ReduceOperandDescriptor(DataType.DOUBLE)
        recvs = [np.zeros(10) for _ in range(9)]
        descriptors = [
            pccl.ReduceOpDescriptor.from_numpy(
                np.full(10, float(i + index)), recv, pccl.ReduceDescriptor(10, ReduceOp.MAX, i, operand, none)
            )
            for i, recv in enumerate(recvs)
        ]
        info = comm.all_reduce_multiple_with_retry(descriptors, max_in_flight=2)
        return info.local_world_size, [recv[0] for recv in recvs]

    for world, values in run_peers(master, 2, body):
        assert (world, values) == (2, [i + 1.0 for i in range(9)])


def test_sync_sets_the_elected_revision(master):
    def body(comm, index):
        weights = np.full(100, float(index))
        state = pccl.SharedState([pccl.TensorInfo.from_numpy(weights, "weights")])
        state.revision = 13 if index == 0 else 0
        info = comm.sync_shared_state(state)
        return state.revision, weights.tolist(), info.tx_bytes, info.rx_bytes

    (sender, receiver) = run_peers(master, 2, body)
    assert sender == (13, [0.0] * 100, 800, 0)
    assert receiver == (13, [0.0] * 100, 0, 800)


def test_an_observer_has_no_vote(master):
    seen = threading.Barrier(2, timeout=20)

    def watch():
        with pccl.Communicator(master, observer=True) as comm:
            seen.wait()
            with pytest.raises(pccl.InvalidUsageError, match="an observer takes no part in steps"), comm.step():
                pass

    with pccl.Communicator(master) as comm, ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        while not comm.are_peers_pending():
            time.sleep(0.01)
        comm.update_topology()
        seen.wait()
        watching.result(20)


def test_a_loss_while_no_call_is_out_is_noticed():
    with pccl.MasterNode("127.0.0.1:0") as node:
        comm = pccl.Communicator(f"127.0.0.1:{node.port}")
        comm.connect()
        with comm.step():
            pass

    def is_lost():
        try:
            comm._core.check_in_run()
        except pccl.MasterConnectionFailedError:
            return True
        return False

    deadline = time.monotonic() + 20
    while not is_lost() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_lost()
    comm.close()


def test_flags_and_complex_numbers_are_synchronised(master):
    torch = pytest.importorskip("torch")

    def body(comm, index):
        own = comm.rank == 0  # the one that has been there longest
        flags = np.array([own, False, True])
        points = np.full(5, 1j if own else 2.0, np.complex64)
        mask = torch.tensor([False, own])
        tensors = {"flags": flags, "points": points, "mask": mask}
        comm.sync_shared_state(pccl.SharedState([pccl.TensorInfo(tensor, name) for name, tensor in tensors.items()]))
        return [tensor.tolist() for tensor in tensors.values()]

    assert run_peers(master, 2, body) == [[[True, False, True], [1j] * 5, [False, True]]] * 2
    with pytest.raises(pccl.UnusableBufferError, match="tensor 'z' is not contiguous"):
        pccl.TensorInfo(np.zeros((4, 4), complex).T, "z")


def test_op_timeout_ends_a_call_that_nobody_joins(master):
    release = threading.Event()

    def body(comm, index):
        if index == 1:
            release.wait(30)
            return None
        start = time.monotonic()
        try:
            comm.all_reduce(np.ones(4), op_timeout=0.5)
        except pccl.PCCLError as error:
            return isinstance(error, TimeoutError), time.monotonic() - start
        finally:
            release.set()

    timed_out, seconds = run_peers(master, 2, body)[0]
    assert timed_out
    assert 0.4 < seconds < 5


def test_alone_is_too_few(master):
    with pccl.Communicator(master) as comm, pytest.raises(pccl.TooFewPeersError):
        comm.all_reduce(np.ones(4), retry=True)


def test_close_ends_calls_in_other_threads(master):
    release = threading.Event()

    def body(comm, index):
        if index == 1:
            release.wait(30)
            return None
        handle = comm.all_reduce_async(np.ones(4))
        waiter = ThreadPoolExecutor(1).submit(handle.wait)
        time.sleep(0.1)
        start = time.monotonic()
        comm.close()
        success, status, _ = waiter.result(10)
        release.set()
        with pytest.raises(pccl.InvalidUsageError, match="closed"):
            comm.update_topology()
        return success, status, time.monotonic() - start < 2

    assert run_peers(master, 2, body)[0] == (False, Result.CANCELLED, True)


BLOCKED = """
    import os, signal, sys, threading, time
    import numpy as np
    import pccl

    def gather(comm):
        while comm.world_size < 2:
            if comm.are_peers_pending():
                comm.update_topology()

    def other():
        comm = pccl.Communicator(address)
        comm.connect()
        gather(comm)
        time.sleep(30)

    node = pccl.MasterNode("127.0.0.1:0")
    node.run()
    address = f"127.0.0.1:{node.port}"
    threading.Thread(target=other, daemon=True).start()
    comm = pccl.Communicator(address)
    comm.connect()
    gather(comm)
"""


def test_ctrl_c_ends_a_blocking_call():
    run = run_python(
        textwrap.dedent(BLOCKED)
        + textwrap.dedent("""
            sent = []
            def interrupt():
                time.sleep(0.5)
                sent.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)
            threading.Thread(target=interrupt, daemon=True).start()
            data = np.ones(1000)
            try:
                comm.all_reduce(data)
            except KeyboardInterrupt:
                print(time.monotonic() - sent[0] < 0.2, bool((data == 1).all()))
            node.interrupt()
        """)
    )
    # The log may say that the master shuts down; an exception would be there too.
    assert (run.returncode, run.stdout) == (0, "True True\n"), run.stderr
    assert "Traceback" not in run.stderr


def test_exit_with_operations_in_flight():
    run = run_python(
        textwrap.dedent(BLOCKED)
        + textwrap.dedent("""
            handles = [comm.all_reduce_async(np.ones(1 << 20), tag=tag) for tag in range(4)]
            node.interrupt()
        """)
    )
    # The log may say that the master shuts down; an exception would be there too.
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr


def test_forked_child_gets_an_error_and_leaves_the_parent_alone():
    run = run_python(
        textwrap.dedent(BLOCKED)
        + textwrap.dedent("""
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                try:
                    comm.all_reduce(np.ones(4))
                except pccl.ForkedError as error:
                    print(error.result.name, flush=True)
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print(comm.world_size)
            node.interrupt()
        """)
    )
    assert (run.returncode, run.stdout) == (0, "FORKED\n2\n"), run.stderr


def test_a_script_that_only_starts_a_master_stays_until_ctrl_c():
    script = "import pccl\nnode = pccl.MasterNode('127.0.0.1:0')\nnode.run()\nprint(node.port, flush=True)\n"
    with background("-c", script) as process:
        assert int(process.stdout.readline()) > 0
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_master_module(number):
    with background("-m", "pccl.master", "--listen-address", "127.0.0.1:0") as process:
        line = process.stdout.readline()
        assert line.startswith("master listening on 127.0.0.1:")
        with pccl.Communicator(line.split()[-1]) as comm:
            assert comm.world_size == 1
        process.send_signal(number)
        assert process.wait(5) == 0
        assert process.stderr.read() == ""
