"""What NVML says of this machine's GPUs: what a measured cost model has to state of its hardware.

Owns the reading and the words for its absence; nothing here fails where there is no GPU.
"""

from __future__ import annotations

from typing import Any


def gpu_facts() -> dict[str, Any]:
    """Driver and, of each GPU: name, memory, clocks (now and most), power (now and limit).

    Where there is none: ``{"gpus": [], "note": why}``. A single value that a GPU does not tell is
    None.
    """
    try:
        import pynvml
    except ImportError:
        return {"gpus": [], "note": "NVML was not read: nvidia-ml-py is not installed"}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {"gpus": [], "note": f"no GPU was found by NVML ({error})"}
    try:
        count = pynvml.nvmlDeviceGetCount()
        return {
            "driver": _told(pynvml, pynvml.nvmlSystemGetDriverVersion),
            "gpus": [_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(count)],
        }
    except pynvml.NVMLError as error:
        return {"gpus": [], "note": f"NVML broke off ({error})"}
    finally:
        pynvml.nvmlShutdown()


def _told(nvml: Any, ask: Any, *arguments: Any) -> Any:
    try:
        value = ask(*arguments)
    except nvml.NVMLError:
        return None
    return value.decode() if isinstance(value, bytes) else value


def _gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    def ask(function: Any, *arguments: Any) -> Any:
        return _told(nvml, function, handle, *arguments)

    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    limit, power = ask(nvml.nvmlDeviceGetPowerManagementLimit), ask(nvml.nvmlDeviceGetPowerUsage)
    return {
        "name": ask(nvml.nvmlDeviceGetName),
        "memory_bytes": memory and int(memory.total),
        "used_bytes": memory and int(memory.used),
        "sm_clock_mhz": ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        "sm_clock_most_mhz": ask(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        "watts": power and power / 1000,
        "limit_watts": limit and limit / 1000,
        "temperature_c": ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
    }


def one_gpus_watts() -> float | None:
    """The first GPU's power now."""
    gpus = gpu_facts()["gpus"]
    return gpus[0]["watts"] if gpus else None
