// The CUDA driver as a machine for the suite: libcuda opened at run time, no toolkit needed.
#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>

#include "../testing/model.h"

class Driver : public Machine {
    void* library;
    void *function[3], *module, *stream;
    int sms = 0;

    template <class... Args> void call(const char* name, Args... args) {
        auto* entry = (int (*)(Args...))dlsym(library, name);
        int code = entry ? entry(args...) : -1;
        if (code != 0) {
            std::fprintf(stderr, "%s: error %d\n", name, code);
            std::exit(2);
        }
    }

  public:
    bool asynchronous = false;

    explicit Driver(const char* image_path) {
        library = dlopen("libcuda.so.1", RTLD_NOW);
        if (!library) {
            std::fprintf(stderr, "no CUDA driver: %s\n", dlerror());
            std::exit(2);
        }
        int device, clock;
        void* context;
        call("cuInit", 0u);
        call("cuDeviceGet", &device, 0);
        call("cuDevicePrimaryCtxRetain", &context, device);
        call("cuCtxSetCurrent", context);
        call("cuDeviceGetAttribute", &sms, 16, device);
        call("cuDeviceGetAttribute", &clock, 13, device);
        char name[100];
        call("cuDeviceGetName", name, 100, device);
        std::printf("%s, %d multiprocessors, %d MHz, %s\n", name, sms, clock / 1000, image_path);
        clock_mhz = clock / 1000.0;
        std::ifstream file(image_path, std::ios::binary);
        std::vector<char> image((std::istreambuf_iterator<char>(file)), {});
        image.push_back(0);
        call("cuModuleLoadData", &module, (const void*)image.data());
        const char* names[3] = {"step_8", "step_16", "step_32"};
        for (int i = 0; i < 3; i++) {
            call("cuModuleGetFunction", &function[i], module, names[i]);
            call("cuFuncSetAttribute", function[i], 8, 232448 - 1024);
        }
        call("cuStreamCreate", &stream, 1u);
    }

    double clock_mhz;

    int blocks() const override { return sms; }
    void* alloc(size_t bytes) override {
        void* at;
        call("cuMemAlloc_v2", &at, bytes);
        return at;
    }
    void upload(void* to, const void* from, size_t bytes) override { call("cuMemcpyHtoD_v2", to, from, bytes); }
    void download(void* to, const void* from, size_t bytes) override {
        call("cuMemcpyDtoH_v2", to, (void*)from, bytes);
    }
    void run(int token_tiles, int shared_bytes, const Phase* phases, int count, const Step& step) override {
        int index = token_tiles == 1 ? 0 : token_tiles == 2 ? 1 : 2;
        void* args[] = {(void*)&phases, (void*)&count, (void*)&step};
        call("cuLaunchCooperativeKernel", function[index], (unsigned)sms, 1u, 1u, (unsigned)THREADS, 1u, 1u,
             (unsigned)shared_bytes, stream, (void**)args);
        if (!asynchronous) call("cuStreamSynchronize", stream);
    }

    // Microseconds of each of `repeats` replays of a graph of the launches that `body` makes.
    std::vector<float> time_graph(int repeats, const std::function<void()>& body) {
        void *graph, *executable, *start, *stop;
        asynchronous = true;
        call("cuStreamBeginCapture_v2", stream, 1);
        body();
        call("cuStreamEndCapture", stream, &graph);
        asynchronous = false;
        call("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
        call("cuEventCreate", &start, 0u);
        call("cuEventCreate", &stop, 0u);
        std::vector<float> times;
        for (int i = 0; i < repeats + 5; i++) {
            float ms;
            call("cuEventRecord", start, stream);
            call("cuGraphLaunch", executable, stream);
            call("cuEventRecord", stop, stream);
            call("cuEventSynchronize", stop);
            call("cuEventElapsedTime", &ms, start, stop);
            if (i >= 5) times.push_back(ms * 1000.0f);
        }
        std::sort(times.begin(), times.end());
        return times;
    }
};
