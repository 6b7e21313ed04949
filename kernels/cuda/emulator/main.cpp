// Runs the suite on the CPU emulator.
#define CUDA_EMULATOR
#include "../batch.cu"
#include "../step.cu"

#include <map>
#include <string>

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
        auto kernel = token_tiles == STEP_1_BYTES ? step_1_bytes : token_tiles == 0 ? step_1 : token_tiles == 1 ? step_8 : token_tiles == 2 ? step_16 : step_32;
        emulator::launch(grid, 1, THREADS, shared_bytes, [=] { kernel(phases, count, step); });
    }
    int cluster_max() const override { return WARPGROUPS ? 8 : 1; }
    void launch(const Launch& l) override {
        static const std::map<std::string, void (*)(const Phase, const Step)> kernels = {
            {"embed_rows", embed_rows}, {"norm_rows", norm_rows}, {"norm_kept", norm_kept}, {"norm_short", norm_short},     {"linear_8", linear_8},
            {"linear_narrow", linear_narrow}, {"linear_16", linear_16},   {"linear_32", linear_32},     {"linear_64", linear_64}, {"linear_held", linear_held}, {"linear_pair_32", linear_pair_32}, {"linear_pair_64", linear_pair_64},
            {"linear_128", linear_128}, {"linear_wide", linear_wide}, {"attend_rows", attend_rows}, {"attend_few", attend_few}, {"store_rows", store_rows},
            {"attend_prompt", attend_prompt}, {"attend_tensor", attend_tensor}, {"attend_tensor_128", attend_tensor_128}, {"pack_screen", pack_screen},
            {"attend_byte_rows", attend_byte_rows}, {"store_byte_rows", store_byte_rows}, {"attend_byte_prompt", attend_byte_prompt},
            {"norm_screen", norm_screen}, {"screen_16", screen_16},   {"screen_64", screen_64},
            {"screen_128", screen_128}, {"screen_256", screen_256}, {"choose_rows", choose_rows}, {"take_rows", take_rows}, {"draw_rows", draw_rows},
            {"rank_rows", rank_rows}, {"pick_rows", pick_rows}, {"tell_rows", tell_rows},
        };
        auto kernel = kernels.at(l.kernel);
        emulator::launch(l.grid, l.cluster, l.threads, l.shared_bytes, [&] { kernel(l.phase, l.step); });
    }
};

int main() {
    Emulated machine(9);
    small_suite(machine);
    return failures > 0;
}
