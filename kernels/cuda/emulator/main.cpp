// Runs the suite on the CPU emulator.
#define CUDA_EMULATOR
#include "../step.cu"

#include "../testing/suite.h"

struct Emulated : Machine {
    std::vector<std::unique_ptr<char[]>> memory;
    int grid;

    explicit Emulated(int blocks) : grid(blocks) {}
    int blocks() const override { return grid; }
    void* alloc(size_t bytes) override {
        memory.push_back(std::make_unique<char[]>(bytes + 16));
        return (void*)(((uintptr_t)memory.back().get() + 15) / 16 * 16);
    }
    void upload(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
    void download(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
    void run(int token_tiles, int shared_bytes, const Phase* phases, int count, const Step& step) override {
        auto kernel = token_tiles == 1 ? step_8 : token_tiles == 2 ? step_16 : step_32;
        emulator::launch(grid, THREADS, shared_bytes, [=] { kernel(phases, count, step); });
    }
};

int main() {
    Emulated machine(9);
    small_suite(machine);
    return failures > 0;
}
