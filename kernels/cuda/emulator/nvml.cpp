// libnvidia-ml.so.1 for machines without a GPU: the calls that bitnetd makes, with fixed readings. What FAKE_NVML_WITHOUT names
// is not supported; FAKE_NVML_XID=N: the first wait for events brings that one.
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10 };

int answer(const char* name) {
    const char* without = std::getenv("FAKE_NVML_WITHOUT");
    return without && std::strstr(without, name) ? NOT_SUPPORTED : OK;
}

struct Utilization {
    unsigned gpu, memory;
};
struct Memory {
    unsigned long long total, free, used;
};
struct Event {
    void* device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};

} // namespace

extern "C" {

int nvmlInit_v2() { return answer("init"); }
int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** device) {
    *device = (void*)1;
    return std::strncmp(bus, "0000:0", 6) == 0 ? OK : NOT_FOUND;
}
int nvmlDeviceGetUtilizationRates(void*, Utilization* rates) {
    *rates = {75, 50};
    return answer("utilization");
}
int nvmlDeviceGetMemoryInfo(void*, Memory* memory) {
    *memory = {1000, 400, 600};
    return answer("memory");
}
int nvmlDeviceGetTemperature(void*, int, unsigned* celsius) {
    *celsius = 41;
    return answer("temperature");
}
int nvmlDeviceGetPowerUsage(void*, unsigned* milliwatts) {
    *milliwatts = 123500;
    return answer("power");
}
int nvmlDeviceGetClockInfo(void*, int kind, unsigned* mhz) {
    *mhz = kind == 1 ? 1980 : 2619;
    return answer("clock");
}
int nvmlDeviceGetTotalEccErrors(void*, int kind, int, unsigned long long* count) {
    *count = kind == 0 ? 5 : 2;
    return answer("ecc");
}
int nvmlEventSetCreate(void** set) {
    *set = (void*)2;
    return answer("events");
}
int nvmlDeviceRegisterEvents(void*, unsigned long long, void*) { return answer("events"); }
int nvmlEventSetWait_v2(void*, Event* event, unsigned timeout_ms) {
    static bool told = false;
    const char* xid = std::getenv("FAKE_NVML_XID");
    if (xid && !told) {
        told = true;
        *event = {(void*)1, 8, (unsigned long long)std::atoll(xid), 0, 0};
        return OK;
    }
    timespec time = {(time_t)(timeout_ms / 1000), (long)(timeout_ms % 1000) * 1000000};
    nanosleep(&time, nullptr);
    return TIMEOUT;
}
}
