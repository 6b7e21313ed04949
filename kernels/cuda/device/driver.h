// The CUDA driver as a machine for the suite: libcuda opened at run time, no toolkit needed.
#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <string>

#include "../testing/batch.h"

class Driver : public Machine {
    void* library;
    void *stream, *other = nullptr, *crossings[2];
    std::map<std::string, void*> functions;
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

    // Images of the step kernels and the batch kernels.
    Driver(const char* step_image, const char* batch_image) {
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
        std::printf("%s, %d multiprocessors, %d MHz, %s\n", name, sms, clock / 1000, step_image);
        clock_mhz = clock / 1000.0;
        load(step_image, {"step_1", "step_1_bytes", "step_8", "step_16", "step_32"});
        load(batch_image, BATCH_KERNELS);
        call("cuStreamCreate", &stream, 1u);
    }
    void load(const char* path, const std::vector<const char*>& names) {
        std::ifstream file(path, std::ios::binary);
        std::vector<char> image((std::istreambuf_iterator<char>(file)), {});
        image.push_back(0);
        void* module;
        call("cuModuleLoadData", &module, (const void*)image.data());
        for (const char* name : names) {
            call("cuModuleGetFunction", &functions[name], module, name);
            call("cuFuncSetAttribute", functions[name], 8, 232448 - 1024);
        }
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
        const char* name = token_tiles == STEP_1_BYTES ? "step_1_bytes" : token_tiles == 0 ? "step_1" : token_tiles == 1 ? "step_8" : token_tiles == 2 ? "step_16" : "step_32";
        void* args[] = {(void*)&phases, (void*)&count, (void*)&step};
        call("cuLaunchCooperativeKernel", functions[name], (unsigned)sms, 1u, 1u, (unsigned)THREADS, 1u, 1u,
             (unsigned)shared_bytes, stream, (void**)args);
        if (!asynchronous) call("cuStreamSynchronize", stream);
    }

    int cluster_max() const override { return 8; }
    bool overlapped = true; // programmatic stream serialization

    struct Attribute {
        unsigned id, pad;
        unsigned value[16];
    };
    struct Config {
        unsigned grid[3], block[3], shared_bytes;
        void* stream;
        Attribute* attributes;
        unsigned count;
    };
    void launch(const Launch& l) override {
        const unsigned CLUSTER_DIMENSION = 4, PROGRAMMATIC_STREAM_SERIALIZATION = 6;
        Attribute attributes[2] = {{CLUSTER_DIMENSION, 0, {(unsigned)l.cluster, 1, 1}},
                                   {PROGRAMMATIC_STREAM_SERIALIZATION, 0, {overlapped}}};
        Config config = {{(unsigned)l.grid, 1, 1}, {(unsigned)l.threads, 1, 1}, (unsigned)l.shared_bytes, stream, attributes, 2};
        void* args[] = {(void*)&l.phase, (void*)&l.step};
        call("cuLaunchKernelEx", &config, functions.at(l.kernel), (void**)args, (void**)nullptr);
        if (!asynchronous) call("cuStreamSynchronize", stream);
    }

    // What `first` and `second` launch, side by side.
    void side_by_side(const std::function<void()>& first, const std::function<void()>& second) {
        if (!other) {
            call("cuStreamCreate", &other, 1u);
            for (void*& crossing : crossings) call("cuEventCreate", &crossing, 2u);
        }
        call("cuEventRecord", crossings[0], stream);
        call("cuStreamWaitEvent", other, crossings[0], 0u);
        first();
        std::swap(stream, other);
        second();
        std::swap(stream, other);
        call("cuEventRecord", crossings[1], other);
        call("cuStreamWaitEvent", stream, crossings[1], 0u);
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
