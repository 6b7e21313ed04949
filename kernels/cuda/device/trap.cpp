// A driver before the real one: once the file TRAP_FILE is there, a launch becomes a kernel that traps, so that a real device
// gets a real sticky error in the midst of what it does. TRAP_AFTER launches are let by before (0 unless told); what is
// recorded counts where it is replayed, as one launch. The file is removed then: the process that follows is left alone.
//
//     g++ -std=c++17 -O2 -shared -fPIC trap.cpp -o libcuda.so.1 -ldl
//     LD_LIBRARY_PATH=. REAL_CUDA=/usr/lib/x86_64-linux-gnu/libcuda.so.1 TRAP_FILE=/tmp/strike bitnetd serve
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#define FORWARDED(F)                                                                                              \
    F(cuInit) F(cuDriverGetVersion) F(cuDeviceGetCount) F(cuDeviceGet) F(cuDeviceGetName) F(cuDeviceGetAttribute) F(cuDeviceGetPCIBusId) \
    F(cuDeviceTotalMem_v2) F(cuDevicePrimaryCtxRetain) F(cuCtxSetCurrent) F(cuMemGetInfo_v2) F(cuMemAlloc_v2)     \
    F(cuMemsetD8Async) F(cuMemHostRegister_v2) F(cuMemHostGetDevicePointer_v2) F(cuMemcpyHtoDAsync_v2) F(cuMemcpyDtoHAsync_v2) F(cuStreamCreate)  \
    F(cuStreamQuery) F(cuStreamSynchronize) F(cuStreamWaitEvent) F(cuEventCreate) F(cuEventRecord) F(cuModuleLoadData) F(cuModuleGetFunction) F(cuFuncSetAttribute)      \
    F(cuGraphInstantiateWithFlags) F(cuGraphUpload) F(cuGraphDestroy) F(cuGraphExecDestroy) F(cuGetErrorName)

#define FORWARD(name)                                                     \
    extern "C" {                                                          \
    __attribute__((visibility("hidden"))) void* real_##name;              \
    __attribute__((naked)) void name() { asm("jmp *real_" #name "(%rip)"); } \
    }
FORWARDED(FORWARD)

namespace {

using Launch = int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**);
using LaunchEx = int (*)(const void*, void*, void**, void**);
using Begin = int (*)(void*, int);
using End = int (*)(void*, void**);
using Replay = int (*)(void*, void*);
Launch real_launch;
LaunchEx real_launch_ex;
Begin real_begin;
End real_end;
Replay real_replay;
bool recording = false;

const char* TRAP = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry boom() { trap; }\n";

template <class... Args> int call(void* function, Args... args) { return ((int (*)(Args...))function)(args...); }

__attribute__((constructor)) void open_real() {
    const char* path = std::getenv("REAL_CUDA");
    void* library = dlopen(path ? path : "/usr/lib/x86_64-linux-gnu/libcuda.so.1", RTLD_NOW);
    if (!library) {
        std::fprintf(stderr, "trap: %s\n", dlerror());
        std::exit(2);
    }
#define OPEN(name) real_##name = dlsym(library, #name);
    FORWARDED(OPEN)
    real_launch = (Launch)dlsym(library, "cuLaunchCooperativeKernel");
    real_launch_ex = (LaunchEx)dlsym(library, "cuLaunchKernelEx");
    real_begin = (Begin)dlsym(library, "cuStreamBeginCapture_v2");
    real_end = (End)dlsym(library, "cuStreamEndCapture");
    real_replay = (Replay)dlsym(library, "cuGraphLaunch");
}

bool strikes() {
    static long launches = 0;
    static const char *file = std::getenv("TRAP_FILE"), *after = std::getenv("TRAP_AFTER");
    if (!file || access(file, F_OK) != 0 || launches++ < (after ? std::atol(after) : 0)) return false;
    return unlink(file) == 0;
}

// Launches the trap on the default stream, where it is this launch's turn; the error is sticky for the whole context.
int strike() {
    if (recording || !strikes()) return 0;
    void *module, *boom;
    int code = call(real_cuModuleLoadData, &module, (const void*)TRAP);
    if (code == 0) code = call(real_cuModuleGetFunction, &boom, module, "boom");
    if (code == 0) code = real_launch(boom, 1, 1, 1, 32, 1, 1, 0, nullptr, nullptr);
    std::fprintf(stderr, "trap: launched (%d)\n", code);
    return code;
}

} // namespace

extern "C" int cuLaunchCooperativeKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                         unsigned bz, unsigned shared, void* stream, void** arguments) {
    if (int code = strike()) return code;
    return real_launch(function, gx, gy, gz, bx, by, bz, shared, stream, arguments);
}

extern "C" int cuLaunchKernelEx(const void* config, void* function, void** arguments, void** extra) {
    if (int code = strike()) return code;
    return real_launch_ex(config, function, arguments, extra);
}

extern "C" int cuStreamBeginCapture_v2(void* stream, int mode) {
    recording = true;
    return real_begin(stream, mode);
}

extern "C" int cuStreamEndCapture(void* stream, void** graph) {
    recording = false;
    return real_end(stream, graph);
}

extern "C" int cuGraphLaunch(void* executable, void* stream) {
    if (int code = strike()) return code;
    return real_replay(executable, stream);
}
