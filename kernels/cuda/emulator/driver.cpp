// libcuda.so.1 for machines without a GPU: the driver calls that bitnetd makes, its kernels on the CPU emulator.
//
// Faults come by environment: FAKE_CUDA_INIT=CODE fails cuInit; FAKE_CUDA_DEVICES=N; FAKE_CUDA_ALLOC=N runs out of memory
// at allocation N; FAKE_CUDA_LAUNCH=N makes launch N a sticky error, FAKE_CUDA_HANG=N one that never ends,
// FAKE_CUDA_EXIT=N one that ends the process, FAKE_CUDA_FLIP=N flips a bit of what copy N to the host brings;
// FAKE_CUDA_REPLAY=N makes launch N of those that are replayed a sticky error; FAKE_CUDA_RECORD=begin, end or instantiate is
// what fails when launches are recorded; FAKE_CUDA_CAPABILITY=MAJORMINOR, FAKE_CUDA_VERSION=N.
// FAKE_CUDA_WAIT=PATH: no context is made while PATH exists.
// FAKE_CUDA_ONCE=PATH: launches and copies are counted while PATH exists, and what happens then removes it, so that the next
// process is well.
#define CUDA_EMULATOR
#include "../batch.cu"
#include "../step.cu"

#include <sys/stat.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, BAD_DEVICE = 101, BAD_IMAGE = 200, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
       NOT_SUPPORTED = 801, BAD_IN_CAPTURE = 900 };

long setting(const char* name, long otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atol(text) : otherwise;
}

// Counts what a fault may happen at.
struct Count {
    long next = 0, number = -1;

    void step() {
        const char* path = std::getenv("FAKE_CUDA_ONCE");
        struct stat found;
        number = !path || stat(path, &found) == 0 ? next++ : -1;
    }
    // Whether the fault of that name happens now.
    bool strikes(const char* name) const {
        if (number < 0 || setting(name, -1) != number) return false;
        const char* path = std::getenv("FAKE_CUDA_ONCE");
        return !path || std::remove(path) == 0;
    }
};

// Work in order, on a thread of its own, as a device does it.
struct Queue {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> work;
    bool busy = false;
    int sticky = OK;

    Queue() { std::thread([this] { run(); }).detach(); }
    void run() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            changed.wait(lock, [this] { return !work.empty(); });
            auto next = std::move(work.front());
            work.pop_front();
            busy = true;
            bool dead = sticky != OK;
            lock.unlock();
            if (!dead) next();
            lock.lock();
            busy = false;
            changed.notify_all();
        }
    }
    int add(std::function<void()> next) {
        std::lock_guard<std::mutex> lock(mutex);
        if (sticky != OK) return sticky;
        work.push_back(std::move(next));
        changed.notify_all();
        return OK;
    }
    int state() {
        std::lock_guard<std::mutex> lock(mutex);
        return sticky != OK ? sticky : busy || !work.empty() ? (int)NOT_READY : (int)OK;
    }
    int wait() {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [this] { return !busy && work.empty(); });
        return sticky;
    }
    void fail(int code) {
        std::lock_guard<std::mutex> lock(mutex);
        sticky = code;
    }
};

// The first one, on which kernels run.
Queue& stream() {
    static Queue* first = new Queue;
    return *first;
}

long allocations = 0;
Count launches, downloads, replayed;

// Launches that are recorded instead of begun.
struct Graph {
    std::vector<std::function<void()>> launches;
};
Graph* recording = nullptr;

bool fails_recording(const char* what) {
    const char* told = std::getenv("FAKE_CUDA_RECORD");
    return told && std::string(told) == what;
}

int begin(std::function<void()> work, void* on = nullptr) {
    if (!recording) return (on ? *(Queue*)on : stream()).add(std::move(work));
    recording->launches.push_back(std::move(work));
    return OK;
}

using StepKernel = void (*)(const Phase*, int, const Step);
using BatchKernel = void (*)(const Phase, const Step);

const std::map<std::string, void*> kernels = {
    {"step_1", (void*)step_1},           {"step_8", (void*)step_8},           {"step_16", (void*)step_16},
    {"step_1_bytes", (void*)step_1_bytes},
    {"step_32", (void*)step_32},         {"embed_rows", (void*)embed_rows},   {"norm_rows", (void*)norm_rows},
    {"linear_8", (void*)linear_8}, {"linear_narrow", (void*)linear_narrow},       {"linear_16", (void*)linear_16},     {"linear_32", (void*)linear_32},
    {"linear_64", (void*)linear_64}, {"linear_held", (void*)linear_held}, {"linear_pair_32", (void*)linear_pair_32}, {"linear_pair_64", (void*)linear_pair_64},     {"linear_128", (void*)linear_128}, {"linear_wide", (void*)linear_wide},   {"attend_rows", (void*)attend_rows}, {"attend_few", (void*)attend_few},
    {"store_rows", (void*)store_rows}, {"norm_kept", (void*)norm_kept}, {"norm_short", (void*)norm_short},   {"attend_prompt", (void*)attend_prompt},
    {"attend_tensor", (void*)attend_tensor}, {"attend_tensor_128", (void*)attend_tensor_128},
    {"attend_byte_rows", (void*)attend_byte_rows}, {"store_byte_rows", (void*)store_byte_rows}, {"attend_byte_prompt", (void*)attend_byte_prompt},
    {"pack_screen", (void*)pack_screen}, {"norm_screen", (void*)norm_screen}, {"screen_16", (void*)screen_16},
    {"screen_64", (void*)screen_64},     {"screen_128", (void*)screen_128}, {"screen_256", (void*)screen_256},   {"choose_rows", (void*)(BatchKernel)choose_rows},
    {"take_rows", (void*)take_rows},
    {"draw_rows", (void*)draw_rows},     {"rank_rows", (void*)rank_rows},     {"pick_rows", (void*)pick_rows}, {"tell_rows", (void*)tell_rows},
};

void launch(int grid, int cluster, int threads, int shared, std::function<void()> body) {
    launches.step();
    if (launches.strikes("FAKE_CUDA_LAUNCH")) return stream().fail(ILLEGAL_ADDRESS);
    if (launches.strikes("FAKE_CUDA_EXIT")) std::_Exit(1);
    if (launches.strikes("FAKE_CUDA_HANG")) {
        for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
    emulator::launch(grid, cluster, threads, shared, std::move(body));
}

// As the driver declares them.
struct Attribute {
    unsigned id, padding;
    unsigned value[16];
};
struct Config {
    unsigned grid[3], block[3], shared_bytes;
    void* stream;
    const Attribute* attributes;
    unsigned count;
};
const unsigned CLUSTER_DIMENSION = 4;

} // namespace

extern "C" {

int cuInit(unsigned) { return (int)setting("FAKE_CUDA_INIT", OK); }
int cuDriverGetVersion(int* version) {
    *version = (int)setting("FAKE_CUDA_VERSION", 13000);
    return OK;
}
int cuDeviceGetCount(int* count) {
    *count = (int)setting("FAKE_CUDA_DEVICES", 1);
    return OK;
}
int cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal < setting("FAKE_CUDA_DEVICES", 1) ? OK : BAD_DEVICE;
}
int cuDeviceGetName(char* name, int length, int device) {
    (void)device;
    std::snprintf(name, (size_t)length, "Emulated GPU");
    return OK;
}
int cuDeviceGetPCIBusId(char* bus, int length, int device) {
    std::snprintf(bus, (size_t)length, "0000:%02x:00.0", device);
    return OK;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
    long capability = setting("FAKE_CUDA_CAPABILITY", 90);
    *value = (int)(attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 2);
    return OK;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = (size_t)1 << 30;
    return OK;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
    const char* path = std::getenv("FAKE_CUDA_WAIT");
    struct stat found;
    while (path && stat(path, &found) == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    *context = (void*)1;
    return OK;
}
int cuCtxSetCurrent(void*) { return OK; }
int cuMemGetInfo_v2(size_t* free, size_t* total) {
    *free = *total = (size_t)256 << 20;
    return OK;
}
int cuMemAlloc_v2(unsigned long long* address, size_t bytes) {
    if (allocations++ == setting("FAKE_CUDA_ALLOC", -1)) return NO_MEMORY;
    void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!memory) return NO_MEMORY;
    *address = (unsigned long long)memory;
    return OK;
}
int cuMemHostRegister_v2(void*, size_t, unsigned) { return OK; }
int cuMemHostGetDevicePointer_v2(unsigned long long* address, void* memory, unsigned) {
    *address = (unsigned long long)memory;
    return OK;
}
int cuMemsetD8Async(unsigned long long to, unsigned char value, size_t bytes, void*) {
    return begin([=] { std::memset((void*)to, value, bytes); });
}
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, void* on) {
    return begin([=] { std::memcpy((void*)to, from, bytes); }, on);
}
int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t bytes, void*) {
    return begin([=] {
        std::memcpy(to, (const void*)from, bytes);
        downloads.step();
        if (downloads.strikes("FAKE_CUDA_FLIP")) ((unsigned char*)to)[bytes / 2] ^= 1;
    });
}
int cuStreamCreate(void** handle, unsigned) {
    static bool any = false;
    *handle = std::exchange(any, true) ? new Queue : &stream();
    return OK;
}
int cuStreamQuery(void* of) { return recording ? (int)BAD_IN_CAPTURE : ((Queue*)of)->state(); }
int cuStreamSynchronize(void* of) { return recording ? (int)BAD_IN_CAPTURE : ((Queue*)of)->wait(); }
// Kernels are computed one after the other whatever their stream.
int cuStreamWaitEvent(void*, void*, unsigned) { return OK; }
int cuEventCreate(void** event, unsigned) {
    *event = (void*)1;
    return OK;
}
int cuEventRecord(void*, void*) { return OK; }
int cuStreamBeginCapture_v2(void*, int) {
    if (recording) return BAD_IN_CAPTURE;
    if (fails_recording("begin")) return NOT_SUPPORTED;
    recording = new Graph;
    return OK;
}
int cuStreamEndCapture(void*, void** graph) {
    if (!recording) return INVALID;
    *graph = std::exchange(recording, nullptr);
    if (!fails_recording("end")) return OK;
    delete (Graph*)std::exchange(*graph, nullptr);
    return BAD_IN_CAPTURE;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    if (!graph) return INVALID;
    if (fails_recording("instantiate")) return NO_MEMORY;
    *executable = new Graph(*(Graph*)graph);
    return OK;
}
int cuGraphUpload(void*, void*) { return OK; }
int cuGraphLaunch(void* executable, void*) {
    if (recording) return BAD_IN_CAPTURE;
    for (const auto& launch : ((Graph*)executable)->launches) {
        auto replay = [launch] {
            replayed.step();
            if (replayed.strikes("FAKE_CUDA_REPLAY")) return stream().fail(ILLEGAL_ADDRESS);
            launch();
        };
        if (int code = stream().add(replay)) return code;
    }
    return OK;
}
int cuGraphDestroy(void* graph) {
    delete (Graph*)graph;
    return OK;
}
int cuGraphExecDestroy(void* executable) {
    delete (Graph*)executable;
    return OK;
}
int cuModuleLoadData(void** module, const void* image) {
    bool code = std::memcmp(image, "\177ELF", 4) == 0 || std::memcmp(image, "//", 2) == 0;
    *module = (void*)1;
    return code ? OK : BAD_IMAGE;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
    auto kernel = kernels.find(name);
    *function = kernel == kernels.end() ? nullptr : kernel->second;
    return *function ? OK : INVALID;
}
int cuFuncSetAttribute(void*, int, int bytes) { return bytes <= 227 << 10 ? OK : INVALID; }
int cuLaunchCooperativeKernel(void* function, unsigned grid, unsigned, unsigned, unsigned threads, unsigned, unsigned,
                              unsigned shared, void*, void** arguments) {
    if (threads != THREADS || shared > 227 << 10) return INVALID;
    auto* phases = *(const Phase**)arguments[0];
    int count = *(int*)arguments[1];
    Step step = *(Step*)arguments[2];
    auto body = [=] { ((StepKernel)function)(phases, count, step); };
    return begin([=] { launch((int)grid, 1, (int)threads, (int)shared, body); });
}
int cuLaunchKernelEx(const Config* config, void* function, void** arguments, void**) {
    Phase phase = *(Phase*)arguments[0];
    Step step = *(Step*)arguments[1];
    int cluster = 1;
    for (unsigned i = 0; i < config->count; i++) {
        if (config->attributes[i].id == CLUSTER_DIMENSION) cluster = (int)config->attributes[i].value[0];
    }
    int grid = (int)config->grid[0], threads = (int)config->block[0], shared = (int)config->shared_bytes;
    if (grid % cluster || shared > 227 << 10) return INVALID;
    auto body = [=] { ((BatchKernel)function)(phase, step); };
    return begin([=] { launch(grid, cluster, threads, shared, body); });
}
int cuGetErrorName(int code, const char** name) {
    *name = code == NO_MEMORY         ? "CUDA_ERROR_OUT_OF_MEMORY"
            : code == NO_DEVICE       ? "CUDA_ERROR_NO_DEVICE"
            : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                                      : "CUDA_ERROR_OTHER";
    return OK;
}
}
