"""The row of panels about the GPUs. `tokenswarm:gpu_*` are recording rules over any GPU exporter's names."""

from __future__ import annotations

from grafana.panels import RED, About, Builder, lines, states, timeseries
from grafana.queries import GPU, HOST, RATE

NO_GPU = "no GPU exporter is scraped (jobs tokenswarm-gpu, gpu-other)"
NO_HOST = (
    "the exporter for GPU and host is not scraped (job tokenswarm-gpu), or by another name than the run's "
    "(telemetry.host_instances)"
)
OURS = "needs this project's GPU exporter, and a GPU that tells it"
NAME = "{{gpu}}"


def _work() -> list[Builder]:
    """How busy it is, and with how much memory."""
    return [
        timeseries(
            "Activity",
            "percentunit",
            About(
                "Share of time in which any kernel ran; with --gpm also how busy SMs, tensor cores and memory were.",
                "tokenswarm:gpu_utilization:ratio; tokenswarm_gpu_*_active_ratio (GPM)",
                "tensor near 0 at a large batch. Utilization is near 100 % in any decode loop: no measure of load.",
                NO_GPU,
            ),
            lines(
                (f"tokenswarm:gpu_utilization:ratio{{{GPU}}}", f"kernels {NAME}"),
                (f"tokenswarm_gpu_sm_active_ratio{{{GPU}}}", f"SM {NAME}"),
                (f"tokenswarm_gpu_tensor_active_ratio{{{GPU}}}", f"tensor {NAME}"),
                (f"tokenswarm_gpu_dram_active_ratio{{{GPU}}}", f"memory {NAME}"),
            ),
            high=1,
        ),
        timeseries(
            "Memory",
            "bytes",
            About(
                "Device memory in use, and there in all.",
                "tokenswarm:gpu_memory_used:bytes, …_total:bytes",
                "grows during a soak: a leak, or another program.",
                NO_GPU,
            ),
            lines(
                (f"tokenswarm:gpu_memory_used:bytes{{{GPU}}}", f"used {NAME}"),
                (f"tokenswarm:gpu_memory_total:bytes{{{GPU}}}", f"total {NAME}"),
            ),
        ),
    ]


def _speed() -> list[Builder]:
    """Power, clocks, and what holds them down."""
    return [
        timeseries(
            "Power",
            "watt",
            About(
                "Mean power of a minute (from the energy counter where there is one), and the limit.",
                "tokenswarm:gpu_power:watts; tokenswarm_gpu_power_limit_watts",
                "at the limit: clocks fall. Far below it at full load: the batch does not fill the GPU.",
                NO_GPU,
            ),
            lines(
                (f"tokenswarm:gpu_power:watts{{{GPU}}}", f"power {NAME}"),
                (f"max by (gpu) (tokenswarm_gpu_power_limit_watts{{{GPU}}})", f"limit {NAME}"),
            ),
        ),
        timeseries(
            "SM clock",
            "hertz",
            About(
                "The clock of the SMs, and the card's highest.",
                "tokenswarm:gpu_sm_clock:hertz; tokenswarm_gpu_clock_max_hertz{clock=sm}",
                "drifts down during a run: heat or power; the numbers are of a slower card.",
                NO_GPU,
            ),
            lines(
                (f"tokenswarm:gpu_sm_clock:hertz{{{GPU}}}", f"now {NAME}"),
                (f'max by (gpu) (tokenswarm_gpu_clock_max_hertz{{clock="sm",{GPU}}})', f"highest {NAME}"),
            ),
        ),
        states(
            "Throttling",
            "percentunit",
            About(
                "Share of the last minute in which the clocks were held down, by reason.",
                "tokenswarm:gpu_throttled:ratio1m, a rate of the driver's own counters: none is missed between scrapes",
                "any thermal or brake reason. sw_power_cap at full load is the card at work.",
                NO_GPU,
            ),
            lines((f"tokenswarm:gpu_throttled:ratio1m{{{GPU}}}", f"{{{{reason}}}} {NAME}")),
            thresholds=((0.001, "yellow"), (0.05, RED)),
            width=8,
            height=8,
        ),
        *_temperature(),
    ]


def _temperature() -> list[Builder]:
    """How warm it is, and where it slows down."""
    return [
        timeseries(
            "Temperature",
            "celsius",
            About(
                "GPU temperature, and where the card slows down.",
                "tokenswarm:gpu_temperature:celsius; tokenswarm_gpu_temperature_limit_celsius{limit=slowdown}",
                "near the slowdown limit.",
                NO_GPU,
            ),
            lines(
                (f"tokenswarm:gpu_temperature:celsius{{{GPU}}}", f"now {NAME}"),
                (
                    f'max by (gpu) (tokenswarm_gpu_temperature_limit_celsius{{limit="slowdown",{GPU}}})',
                    f"slowdown {NAME}",
                ),
            ),
        ),
    ]


def _links() -> list[Builder]:
    """Links and errors."""
    return [
        timeseries(
            "PCIe and NVLink",
            "Bps",
            About(
                "Bytes a second over PCIe (headers included) and over all NVLinks, by direction as the GPU sees it.",
                "rate of tokenswarm_gpu_pcie_bytes_total by the time that it covers; rate of …_nvlink_bytes_total",
                "PCIe busy with one GPU: the KV cache or weights are swapped to the host.",
                OURS,
            ),
            lines(
                (
                    f"sum by (gpu, direction) (rate(tokenswarm_gpu_pcie_bytes_total{{{GPU}}}[{RATE}]))"
                    " / on (gpu) group_left sum by (gpu) "
                    f"(rate(tokenswarm_gpu_pcie_observed_seconds_total{{{GPU}}}[{RATE}]))",
                    f"PCIe {{{{direction}}}} {NAME}",
                ),
                (
                    f"max by (gpu, direction) (rate(tokenswarm_gpu_nvlink_bytes_total{{{GPU}}}[{RATE}]))",
                    f"NVLink {{{{direction}}}} {NAME}",
                ),
            ),
            width=12,
        ),
        timeseries(
            "XID and memory errors",
            "short",
            About(
                "Critical errors that the driver reported, and ECC errors.",
                "tokenswarm_gpu_xid_errors_total, tokenswarm_gpu_ecc_errors_total",
                "any step up. XID 48, 63, 64, 79, 94, 95: stop and look at the card.",
                OURS + "; no XID was reported",
            ),
            lines(
                (f"max by (gpu, xid) (tokenswarm_gpu_xid_errors_total{{{GPU}}})", f"XID {{{{xid}}}} {NAME}"),
                (
                    f"sum by (gpu, type) (max by (gpu, type, scope) (tokenswarm_gpu_ecc_errors_total{{{GPU}}}))",
                    f"ECC {{{{type}}}} {NAME}",
                ),
            ),
            width=12,
        ),
    ]


def _host() -> list[Builder]:
    """The machine around the GPU: a GPU that waits for it looks like a slow one."""
    busy = f"rate(tokenswarm_host_core_busy_seconds_total{{{HOST}}}[{RATE}])"
    stalled = f'rate(tokenswarm_host_pressure_seconds_total{{share="some",{HOST}}}[{RATE}])'
    return [
        timeseries(
            "CPU of the machine",
            "percentunit",
            About(
                "Share of CPU time in use: mean over the cores, and the fullest one, of each machine with an exporter.",
                "rate of tokenswarm_host_core_busy_seconds_total: avg and max",
                "the fullest core at 100 %: a process with one thread (tokenizer, scheduler, a worker) is the limit.",
                NO_HOST,
            ),
            lines(
                (f"avg by (instance) ({busy})", "all cores {{instance}}"),
                (f"max by (instance) ({busy})", "fullest core {{instance}}"),
            ),
            high=1,
            width=12,
        ),
        timeseries(
            "Waiting for CPU, memory or disk",
            "percentunit",
            About(
                "Share of time in which some task of the machine waited for a resource.",
                "rate of tokenswarm_host_pressure_seconds_total{share=some} (Linux pressure stall information)",
                "cpu above 20 %: engine and load generator share a machine. memory or io above 0 for long: swapping.",
                NO_HOST + ", or its kernel tells no pressure",
            ),
            lines((f"max by (instance, resource) ({stalled})", "{{resource}} {{instance}}")),
            high=1,
            width=12,
        ),
    ]


def panels() -> list[Builder]:
    """Load, memory, power, clocks, throttling, temperature, links, and the machine around them."""
    return [*_work(), *_speed(), *_links(), *_host()]
