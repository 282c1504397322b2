"""Made-up exports of Nsight Compute and Nsight Systems, in the forms that their versions print."""

from __future__ import annotations

PUSH_POP = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
START_END = "Id:Domain:Start/Stop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
WHO = ["ID", "Process ID", "Process Name", "Host Name", PUSH_POP, START_END, "Kernel Name", "Context", "Stream"]
WHERE = ["Block Size", "Grid Size", "Device", "CC"]
SASS = [
    f"smsp__sass_thread_inst_executed_op_{kind}{name}_pred_on.sum" for kind in "dfh" for name in ("add", "mul", "fma")
]
ELAPSED = "avg.pct_of_peak_sustained_elapsed"
COUNTERS = {
    "dram__bytes_read.sum": "Mbyte",
    "dram__bytes_write.sum": "Kbyte",
    f"gpu__compute_memory_throughput.{ELAPSED}": "%",
    "gpu__time_duration.sum": "usecond",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum": "sector",
    f"sm__inst_executed_pipe_tensor.{ELAPSED}": "%",
    "sm__ops_path_tensor_src_bf16_dst_fp32.sum": "",
    "sm__pipe_tensor_op_dmma_cycles_active.avg.pct_of_peak_sustained_elapsed": "%",
    f"sm__throughput.{ELAPSED}": "%",
    **dict.fromkeys(SASS, "inst"),
    "smsp__sass_average_data_bytes_per_sector_mem_global_op_ld.ratio": "byte/sector",
    "launch__registers_per_thread": "register/thread",
}
GEMV = {
    "dram__bytes_read.sum": "1,200.00",
    "dram__bytes_write.sum": "500.00",
    f"gpu__compute_memory_throughput.{ELAPSED}": "90.00",
    "gpu__time_duration.sum": "400.00",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum": "1,000,000",
    f"sm__inst_executed_pipe_tensor.{ELAPSED}": "4.00",
    "sm__ops_path_tensor_src_bf16_dst_fp32.sum": "2,000,000",
    "sm__pipe_tensor_op_dmma_cycles_active.avg.pct_of_peak_sustained_elapsed": "0.00",
    f"sm__throughput.{ELAPSED}": "10.00",
    **dict.fromkeys(SASS, "0"),
    "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum": "1,000",
    "smsp__sass_thread_inst_executed_op_fadd_pred_on.sum": "100",
    "smsp__sass_thread_inst_executed_op_hfma_pred_on.sum": "10",
    "smsp__sass_average_data_bytes_per_sector_mem_global_op_ld.ratio": "32.00",
    "launch__registers_per_thread": "64",
}
NORM = {
    **GEMV,
    "dram__bytes_read.sum": "2.00",
    "dram__bytes_write.sum": "1,000.00",
    f"gpu__compute_memory_throughput.{ELAPSED}": "10.00",
    "gpu__time_duration.sum": "100.00",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum": "1,000,000",
    f"sm__inst_executed_pipe_tensor.{ELAPSED}": "0.00",
    "sm__ops_path_tensor_src_bf16_dst_fp32.sum": "0",
    f"sm__throughput.{ELAPSED}": "2.00",
    "smsp__sass_average_data_bytes_per_sector_mem_global_op_ld.ratio": "16.00",
}


def cell(text):
    return '"' + str(text).replace('"', '""') + '"'


def line(cells):
    return ",".join(map(cell, cells)) + "\n"


def stack(*names, domain="inferscope", payload=None):
    """A cell of the column of pushed ranges."""
    middle = "none:none" if payload is None else f"int64:{payload}"
    return "1234  " + "  ".join(f'"{domain}:{name}:{middle}:none:none:none:none"' for name in names)


def raw_page(launches, *, units=None, noise=True, process=1234):
    """A raw page of (kernel, ranges, values) launches.

    Args:
        launches: What ran.
        units: Instead of the usual ones; False for no row of units.
        noise: With the tool's lines and the program's own around it.
        process: Its id.
    """
    units = COUNTERS if units is None else units
    head = '==PROF== Connected to process 1234 (/usr/bin/python3)\nIt said "yes, and then\n' if noise else ""
    tail = "The answer is 42, 43, and more\n==PROF== Disconnected from process 1234\n" if noise else ""
    text = head + line([*WHO, *WHERE, *COUNTERS])
    if units:
        text += line([""] * (len(WHO) + len(WHERE)) + [units.get(name, "") for name in COUNTERS])
    for number, (kernel, ranges, values) in enumerate(launches):
        who = [number, process, "python3", "host", ranges, "", kernel, 1, 7]
        text += line([*who, "(256, 1, 1)", "(128, 1, 1)", 0, "9.0", *(values[name] for name in COUNTERS)])
    return text + tail


DETAILS = [*WHO, *WHERE, "Section Name", "Metric Name", "Metric Unit", "Metric Value"]
RULES = ["Rule Name", "Rule Type", "Rule Description", "Estimated Speedup Type", "Estimated Speedup"]


def details_page(launches, *, rules=True):
    """A details page of (kernel, ranges, rows); a row is (section, metric, unit, value) or (rule, type, text, gain)."""
    text = line([*DETAILS, *(RULES if rules else ())])
    for number, (kernel, ranges, rows) in enumerate(launches):
        who = [number, 1234, "python3", "host", ranges, "", kernel, 1, 7, "(256, 1, 1)", "(1, 1, 1)", 0, "9.0"]
        for row in rows:
            if row[0].endswith("Rule"):
                text += line([*who, "SpeedOfLight", "", "", "", row[0], row[1], row[2], "global", row[3]])
            else:
                text += line([*who, *row, *([""] * len(RULES) if rules else ())])
    return text


SPEED = "GPU Speed Of Light Throughput"
DETAILS_ROWS = [
    (SPEED, "DRAM Frequency", "Ghz", "2.62"),
    (SPEED, "Memory Throughput", "%", "90.00"),
    (SPEED, "DRAM Throughput", "%", "85.00"),
    (SPEED, "Duration", "us", "400.00"),
    (SPEED, "Compute (SM) Throughput", "%", "10.00"),
    ("SOLRule", "OPT", "The kernel is bound by memory.", "13.5"),
    ("Memory Workload Analysis", "Memory Throughput", "Gbyte/s", "3,000.00"),
    ("Occupancy", "Achieved Occupancy", "%", "N/A"),
]

KERNELS = """\
Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
90.0,9000000,20,450000.0,450000.0,440000,460000,1000.0,"gemv<bf16>(int, float *)"
10.0,"1,000,000",40,25000.0,25000.0,24000,26000,10.0,rms_norm
"""
CALLS = """\
Time (%),Total Time (ns),Num Calls,Avg (ns),Name
60.0,6000000,20,300000.0,cudaStreamSynchronize
40.0,4000000,60,66666.0,cudaLaunchKernel
"""
OS_CALLS = """\
Time (%),Total Time (ns),Num Calls,Avg (ns),Name
99.0,99000000,7,14000000.0,poll
"""
COPIES = """\
Time (%),Total Time (ns),Count,Avg (ns),Operation
100.0,20000,10,2000.0,[CUDA memcpy Device-to-Host]
"""
RANGES = """\
Time (%),Total Time (ns),Instances,Avg (ns),Range
70.0,7000000,1,7000000.0,inferscope:prefill
30.0,3000000,19,157894.0,inferscope:decode
"""
PROJECTED = """\
Range,Style,Total Proj Time (ns),Total Range Time (ns),Range Instances,Proj Avg (ns),Total GPU Ops
inferscope:decode,PushPop,8000000,3000000,19,421052.6,57
:mine: step,PushPop,1000,2000,1,1000.0,1
"""
LAUNCHES = """\
PID,TID,Device ID,Count,QCount,TAvg (ns),AAvg (ns),QAvg (ns),KAvg (ns),API Name,Kernel Name
1234,1234,0,20,0,452000.0,2000.0,,450000.0,cudaLaunchKernel,"gemv<bf16>(int, float *)"
1234,1234,0,40,40,37000.0,2000.0,10000.0,25000.0,cudaLaunchKernel,rms_norm
"""
