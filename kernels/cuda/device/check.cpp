// Checks the kernels on a real device, then measures them. Usage: check STEP_IMAGE BATCH_IMAGE [MODE], where quick only checks
// small models, layers two layers of a large one and int8 what is over an int8 cache, profile runs three steps of one row for a profiler, forms compares the
// two forms of few rows, and one [int8], decode ROWS[@CONTEXT][/int8]..., mixed ROWS+PROMPTSxLENGTH[@START][/int8]... and prompts [exact|tensor|int8]
// measure what they name: over an F16 cache, or an int8 one.
#include "driver.h"

#include "../testing/suite.h"

const double BYTES_PER_US = 3.0e6; // the copy bandwidth of an H100, GPU.md's ceiling

const double OPERATIONS_PER_US = 1.255e9; // what mma.sync of bytes reaches there

struct Group {
    const char* name;
    int kind, offset; // of the linear phases of a layer
};

double phase_bytes(const Model& m, const Phase& p, int tokens, int context) {
    if (p.kind == PHASE_LINEAR || p.kind == PHASE_HEAD) return (double)p.tiles * p.items * 512;
    const double position = m.shape.bytes ? 2.0 * m.shape.head_dim + 4.0 : 4.0 * m.shape.head_dim;
    if (p.kind == PHASE_ATTEND) return position * tokens * context * m.shape.kv_heads;
    return 0;
}

// Launches of one phase each, all layers of a group in one graph: microseconds a launch.
void time_groups(Driver& gpu, Loaded& loaded, int context) {
    const char* linear_names[] = {"qkv", "o", "gate_up", "down"};
    for (int group = 0; group < 7; group++) {
        std::vector<int> members;
        int linears = 0;
        for (int i = 0; i < (int)loaded.phases.size(); i++) {
            int kind = loaded.phases[i].kind;
            bool in = group < 4    ? kind == PHASE_LINEAR && linears % 4 == group
                      : group == 4 ? kind == PHASE_ATTEND
                      : group == 5 ? kind == PHASE_QUANTIZE
                                   : kind == PHASE_HEAD;
            linears += kind == PHASE_LINEAR;
            if (in) members.push_back(i);
        }
        if (members.empty()) continue;
        auto times = gpu.time_graph(20, [&] {
            for (int i : members) loaded.run(i, i + 1);
        });
        double us = times[times.size() / 2] / members.size();
        double bytes = phase_bytes(loaded.model, loaded.phases[members[0]], loaded.step.tokens, context);
        const char* name = group < 4 ? linear_names[group] : group == 4 ? "attend" : group == 5 ? "quantize" : "head";
        std::printf("  alone    %-9s %8.2f us  %9.2f MB  %5.1f %% of 3.0 TB/s\n", name, us, bytes / 1e6,
                    100 * bytes / BYTES_PER_US / us);
    }
}

// Where one launch of a whole step spends its time, by the clock of block 0.
void trace_step(Driver& gpu, Loaded& loaded) {
    int count = (int)loaded.phases.size();
    loaded.step.trace = gpu.filled<long long>(2 * count, 0);
    loaded.run(0, count);
    loaded.run(0, count);
    auto trace = gpu.read(loaded.step.trace, 2 * count);
    loaded.step.trace = nullptr;
    double work[7] = {}, wait[7] = {};
    int seen[7] = {}, linears = 0;
    const char* names[] = {"qkv", "o", "gate_up", "down", "attend", "quantize", "head"};
    for (int i = 0; i + 1 < count; i++) {
        int kind = loaded.phases[i].kind;
        int group = kind == PHASE_LINEAR     ? linears++ % 4
                    : kind == PHASE_ATTEND   ? 4
                    : kind == PHASE_QUANTIZE ? 5
                    : kind == PHASE_HEAD     ? 6
                                             : -1;
        if (i == 0 || group < 0) continue;
        work[group] += (double)(trace[2 * i] - trace[2 * i - 1]) / gpu.clock_mhz;
        wait[group] += (double)(trace[2 * i + 1] - trace[2 * i]) / gpu.clock_mhz;
        seen[group]++;
    }
    for (int g = 0; g < 7; g++) {
        if (seen[g]) {
            std::printf("  in step  %-9s %8.2f us of work, %6.2f us to the next phase\n", names[g], work[g] / seen[g],
                        wait[g] / seen[g]);
        }
    }
}

void trace_token(Driver& gpu, Loaded& loaded, int context) {
    int count = loaded.token_count, linears = 0;
    auto kinds = gpu.read(loaded.token_there, count);
    loaded.token_step.trace = gpu.filled<long long>(2 * count, 0);
    loaded.set_rows({998}, {context});
    loaded.run_token();
    auto trace = gpu.read(loaded.token_step.trace, 2 * count);
    loaded.token_step.trace = nullptr;
    const char* names[] = {"qkv", "o", "gate_up", "down", "attend", "screen", "choose"};
    double work[7] = {}, rest[7] = {};
    int seen[7] = {};
    for (int i = 0; i + 1 < count; i++) {
        int kind = kinds[i].kind;
        int group = kind == PHASE_LINEAR   ? linears++ % 4
                    : kind == PHASE_ATTEND ? 4
                    : kind == PHASE_SCREEN ? 5
                    : kind == PHASE_CHOOSE ? 6
                                           : -1;
        if (i == 0 || group < 0) continue;
        work[group] += (double)(trace[2 * i] - trace[2 * i - 1]) / gpu.clock_mhz;
        rest[group] += (double)(trace[2 * i + 1] - trace[2 * i]) / gpu.clock_mhz;
        seen[group]++;
    }
    for (int g = 0; g < 7; g++) {
        if (!seen[g]) continue;
        std::printf("  in step_1 %-9s %8.2f us, waiting for its input among them, %6.2f us to the next phase\n", names[g],
                    work[g] / seen[g], rest[g] / seen[g]);
    }
}

// One row by step_1: with the screened head, then with a copy for the whole head.
void measure_token(Driver& gpu, const Model& model, int context) {
    Loaded loaded(model, gpu, 1);
    loaded.set_rows({998}, {context});
    auto screened = gpu.time_graph(50, [&] { loaded.run_token(); });
    loaded.set_rows({998}, {context});
    auto whole = gpu.time_graph(50, [&] { loaded.run_token_logits(); });
    // Steps that follow each other, as in a server; all of them in as many splits as the first.
    const int steps = 6, repeats = 10;
    loaded.set_rows({998}, {context});
    auto row = gpu.time_graph(repeats, [&] {
        for (int i = 0; i < steps; i++) loaded.run_token();
    });
    double bytes = 0, head = 0;
    for (const Phase& p : loaded.phases) (p.kind == PHASE_HEAD ? head : bytes) += phase_bytes(model, p, 1, context);
    double us = screened[screened.size() / 2], all = whole[whole.size() / 2];
    double limit = (bytes + head) / BYTES_PER_US, least = (bytes + head / 2) / BYTES_PER_US;
    std::printf("batch 1, context %d%s: %.1f us a step with the screened head (best %.1f, p90 %.1f), %.0f tokens/s, %.1f %% of the "
                "limit %.1f us, %.1f %% of %.1f us with the screen's bytes; %.1f us with all logits, %.1f %%\n",
                context, model.shape.bytes ? ", int8 cache" : "", us, screened[0], screened[screened.size() * 9 / 10], 1e6 / us, 100 * limit / us, limit,
                100 * least / us, least, all, 100 * limit / all);
    std::printf("  %.1f us a step where %d follow each other\n", row[row.size() / 2] / steps, steps);
    trace_token(gpu, loaded, context);
}

// The cache: the same random numbers again and again.
void fill_pool(Driver& gpu, const Loaded& loaded) {
    size_t left = loaded.pool_len();
    std::vector<uint16_t> some(std::min(left, (size_t)4 << 20));
    Random random(3);
    for (auto& half : some) half = (uint16_t)(0x3000 + random.below(0x0800));
    for (unsigned short* at = loaded.step.kv_pool; left > 0;) {
        size_t count = std::min(left, some.size());
        gpu.upload(at, some.data(), count * 2);
        at += count;
        left -= count;
    }
}

void measure(Driver& gpu, const Model& model, int tokens, int context) {
    Loaded loaded(model, gpu, tokens);
    fill_pool(gpu, loaded);
    std::vector<int> ids(tokens), positions(tokens, context);
    for (int t = 0; t < tokens; t++) ids[t] = t * 997 + 1;
    int count = (int)loaded.phases.size();
    loaded.set_rows(ids, positions);
    auto once = gpu.time_graph(50, [&] { loaded.run(0, count); });
    loaded.set_rows(ids, positions);
    auto nodes = gpu.time_graph(10, [&] {
        for (int i = 0; i < count; i++) loaded.run(i, i + 1);
    });
    double bytes = 0;
    for (const Phase& p : loaded.phases) bytes += phase_bytes(model, p, tokens, context);
    double us = once[once.size() / 2], limit = bytes / BYTES_PER_US;
    std::printf("batch %d, context %d: %.1f us a step in one launch (best %.1f, p90 %.1f), %.0f tokens/s, %.1f %% of the "
                "limit %.1f us (%.1f MB); %.1f us as %d launches\n",
                tokens, context, us, once[0], once[once.size() * 9 / 10], tokens * 1e6 / us, 100 * limit / us, limit,
                bytes / 1e6, nodes[nodes.size() / 2], count);
    loaded.set_rows(ids, positions);
    trace_step(gpu, loaded);
    loaded.set_rows(ids, positions);
    time_groups(gpu, loaded, context);
    std::fflush(stdout);
}

// The layers of a step by the batch kernels, as one graph; then each kernel alone, all its launches in one graph.
void measure_batch(Driver& gpu, const Model& model, const std::vector<Segment>& segments) {
    BatchStep step(model, gpu, segments);
    fill_pool(gpu, step.loaded);
    auto launches = layer_launches(step.loaded, step.rows);
    std::vector<Draw> among_best = step.draws;
    for (Draw& draw : among_best) {
        draw.factor = 1.0f;
        draw.count = 50;
        draw.top_p = 0.9f;
    }
    const auto head = step.screened_head(), drawn_head = step.screened_head(step.draws), ranked_head = step.screened_head(among_best);
    const size_t body = launches.size();
    auto drawn_step = launches, ranked_step = launches;
    drawn_step.insert(drawn_step.end(), drawn_head.begin(), drawn_head.end());
    ranked_step.insert(ranked_step.end(), ranked_head.begin(), ranked_head.end());
    launches.insert(launches.end(), head.begin(), head.end());
    auto time = [&](const std::function<bool(const Launch&, int)>& wanted) {
        // Every step moves its rows on by a position.
        step.loaded.set_rows(step.ids, step.positions);
        auto times = gpu.time_graph(10, [&] {
            for (size_t i = 0; i < launches.size(); i++) {
                if (wanted(launches[i], (int)i)) gpu.launch(launches[i]);
            }
        });
        return times[times.size() / 2];
    };
    float overlapped = time([](const Launch&, int) { return true; });
    gpu.overlapped = false;
    float apart = time([](const Launch&, int) { return true; });
    gpu.overlapped = true;
    // As the server has it, where there are two parts.
    float parted = overlapped;
    const auto parts = layer_parts(step.loaded, step.rows);
    if (!parts[1].empty()) {
        const auto all = [&gpu](const std::vector<Launch>& launches) {
            for (const Launch& launch : launches) gpu.launch(launch);
        };
        step.loaded.set_rows(step.ids, step.positions);
        auto times = gpu.time_graph(10, [&] {
            gpu.side_by_side([&] { all(parts[0]); }, [&] { all(parts[1]); });
            all(head);
        });
        parted = times[times.size() / 2];
    }
    launches.swap(drawn_step);
    float drawn = time([](const Launch&, int) { return true; });
    launches.swap(drawn_step);
    launches.swap(ranked_step);
    float ranked = time([](const Launch&, int) { return true; });
    float before = time([&](const Launch&, int at) { return at < (int)body; });
    for (size_t i = body; i < launches.size(); i++) {
        const float until = time([&](const Launch&, int at) { return at <= (int)i; });
        std::printf("  among 50 best: %-14s %7.2f us more\n", launches[i].kernel, until - before);
        before = until;
    }
    launches.swap(ranked_step);
    const int rows = step.loaded.step.tokens, layers = model.shape.layers;
    double bytes = 0, operations = 0;
    for (const Phase& p : step.loaded.phases) {
        if (p.kind == PHASE_ATTEND) {
            for (const Segment& s : segments) bytes += phase_bytes(model, p, 1, s.start + s.rows);
        } else {
            bytes += phase_bytes(model, p, rows, 0);
        }
        if (p.kind == PHASE_LINEAR) operations += 32.0 * p.tiles * p.cols * rows;
    }
    double limit = std::max(bytes / BYTES_PER_US, operations / OPERATIONS_PER_US);
    std::printf("batch kernels%s, %d decode rows, %d prompt rows at %d: %.1f us a step, %.1f us in one part, %.1f us without overlap, %.1f us with two of "
                "three rows drawn, %.1f with all among their 50 best, %.0f rows/s, %.1f %% of the limit %.1f us, %zu launches\n",
                model.shape.bytes ? ", int8 cache" : "", step.rows.decodes, step.rows.prompts, segments[0].start, parted, overlapped, apart, drawn, ranked, rows * 1e6 / parted,
                100 * limit / parted, limit, launches.size());
    const size_t each = (body - 1) / layers;
    for (size_t k = 0; k < each + head.size(); k++) {
        bool in_layer = k < each;
        float us = time([&](const Launch&, int i) {
            return in_layer ? i > 0 && (size_t)i < body && (size_t)(i - 1) % each == k : (size_t)i == body + k - each;
        });
        if (in_layer) us /= layers;
        const Launch& l = in_layer ? launches[1 + k] : launches[body + k - each];
        double work = l.kernel[0] == 'l' ? 32.0 * l.phase.tiles * l.phase.cols * rows : 0;
        std::printf("  %-14s grid %5d x %d: %7.2f us %8.1f TOPS\n", l.kernel, l.grid / l.cluster, l.cluster, us, work / us * 1e-6);
    }
    std::fflush(stdout);
}

// The layers of few rows in both forms: which one is sooner decides how many rows the server gives to a step kernel.
void compare_forms(Driver& gpu, const Model& model, int tokens) {
    BatchStep step(model, gpu, std::vector<Segment>(tokens, {128, 1}));
    const int layers = (int)step.loaded.phases.size() - 2;
    auto one = gpu.time_graph(30, [&] { step.loaded.run(0, layers); });
    auto many = gpu.time_graph(30, [&] { step.layers(); });
    auto head = gpu.time_graph(30, [&] {
        for (const Launch& launch : step.screened_head()) gpu.launch(launch);
    });
    std::printf("layers of %d rows: %.1f us in one launch, %.1f us by batch kernels; screened head %.1f us\n", tokens,
                one[one.size() / 2], many[many.size() / 2], head[head.size() / 2]);
    std::fflush(stdout);
}

// The large model's shape over an int8 cache.
Shape over_bytes() {
    Shape shape = BITNET_2B4T;
    shape.bytes = true;
    return shape;
}

// Each of `names` is a number of rows, or rows@context, /int8 behind.
void measure_decode(Driver& gpu, const std::vector<std::string>& names) {
    Model model(BITNET_2B4T, 1100, 10);
    for (const std::string& name : names) {
        const size_t at = name.find('@');
        const int context = at == std::string::npos ? 128 : std::atoi(name.c_str() + at + 1);
        model.positions = context + 76; // room for the steps of all timings
        model.shape.bytes = name.find("/int8") != std::string::npos;
        measure_batch(gpu, model, std::vector<Segment>(std::atoi(name.c_str()), {context, 1}));
    }
}

// Prompts, or parts of them, beside rows that decode: in tiles, and each row for itself. Each of `names` is ROWS+PROMPTSxLENGTH, or
// that and @START, /int8 behind.
void measure_mixed(Driver& gpu, const std::vector<std::string>& names) {
    Model model(BITNET_2B4T, 1100, 10);
    for (const std::string& name : names) {
        int rows = 0, prompts = 0, length = 0, start = 0;
        std::sscanf(name.c_str(), "%d+%dx%d@%d", &rows, &prompts, &length, &start);
        model.shape.bytes = name.find("/int8") != std::string::npos;
        std::vector<Segment> segments((size_t)rows, {100, 1});
        segments.insert(segments.end(), (size_t)prompts, {start, length});
        std::printf("%s:", name.c_str());
        for (bool stored : {false, true}) {
            BatchStep step(model, gpu, segments, stored);
            fill_pool(gpu, step.loaded);
            auto launches = layer_launches(step.loaded, step.rows);
            const auto head = step.screened_head();
            launches.insert(launches.end(), head.begin(), head.end());
            step.loaded.set_rows(step.ids, step.positions);
            auto times = gpu.time_graph(10, [&] {
                for (const Launch& launch : launches) gpu.launch(launch);
            });
            std::printf(" %.1f us %s", times[times.size() / 2], stored ? "by single rows\n" : "in tiles,");
        }
        std::fflush(stdout);
    }
}

// By all forms of attention, or the named one.
void measure_prompts(Driver& gpu, const std::string& form) {
    Model prompt(BITNET_2B4T, 2100, 10);
    for (const std::string kind : {"exact", "tensor", "int8"}) {
        if (form != "" && form != kind) continue;
        const bool tensor = kind == "tensor";
        prompt.shape.bytes = kind == "int8";
        std::printf("attention %s\n", tensor ? "on tensor cores" : prompt.shape.bytes ? "with the CPU's bits, int8 cache" : "with the CPU's bits");
        measure_batch(gpu, prompt, {{0, 512, tensor}});
        measure_batch(gpu, prompt, {{0, 2048, tensor}});
        measure_batch(gpu, prompt, {{1536, 512, tensor}});
    }
}

// Prompts of the large model's shape on tensor cores.
void prompts_agree(Driver& gpu) {
    Shape one_layer = BITNET_2B4T;
    one_layer.layers = 1;
    one_layer.vocab = 100;
    tensor_agrees(gpu, Model(one_layer, 1200, 9), {{1000, 40, true}, {3, 70, true}});
    one_layer.layers = 2;
    tensor_pieces_agree(gpu, Model(one_layer, 1100, 9), 1090, {64, 100, 391});
}

// One row: two layers of a large model, in several splits.
void token_agrees(Driver& gpu) {
    for (Shape two_layers : {BITNET_2B4T, over_bytes()}) {
        two_layers.layers = 2;
        steps_agree(gpu, Model(two_layers, 1100, 8), {1020}, 3, false);
    }
}

// Decode rows and prompts over an int8 cache: two layers of a large model.
void bytes_agree(Driver& gpu) {
    Shape two_layers = over_bytes();
    two_layers.layers = 2;
    Model two(two_layers, 1100, 9);
    batch_agrees(gpu, two, {{600, 1}, {255, 1}, {0, 1}, {1020, 1}, {250, 9}, {0, 20}});
    std::vector<Segment> many;
    for (int i = 0; i < 40; i++) many.push_back({i * 7, 1});
    batch_agrees(gpu, two, many);
}

void layers_agree(Driver& gpu) {
    Shape two_layers = BITNET_2B4T;
    two_layers.layers = 2;
    steps_agree(gpu, Model(two_layers, 300, 9), std::vector<int>(8, 254), 3, false);
    std::vector<int> starts;
    for (int t = 0; t < 32; t++) starts.push_back(t * 8);
    steps_agree(gpu, Model(two_layers, 300, 9), starts, 1, false);
    Model two(two_layers, 700, 9);
    batch_agrees(gpu, two, {{0, 100}});
    batch_agrees(gpu, two, {{600, 1}, {255, 1}, {31, 1}, {0, 1}, {250, 20}});
    std::vector<Segment> many;
    for (int i = 0; i < 70; i++) many.push_back({i * 4, 1});
    batch_agrees(gpu, two, many);
    // Blocks that stay for more than one piece of work.
    batch_agrees(gpu, Model({1152, 1, 9, 3, 128, 6912, 3000}, 500, 11), {{30, 1}, {0, 400}});
}

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    const std::string mode = argc > 3 ? argv[3] : "";
    Driver gpu(argv[1], argv[2]);
    if (mode == "profile") {
        Model model(BITNET_2B4T, 300, 10);
        Loaded loaded(model, gpu, 1);
        loaded.set_rows({1}, {128});
        for (int i = 0; i < 3; i++) loaded.run_token();
        return 0;
    }
    if (mode == "decode") {
        measure_decode(gpu, {argv + 4, argv + argc});
    }
    if (mode == "mixed") {
        measure_mixed(gpu, {argv + 4, argv + argc});
    }
    if (mode == "prompts") {
        small_tensor_suite(gpu);
        prompts_agree(gpu);
        measure_prompts(gpu, argc > 4 ? argv[4] : "");
    }
    if (mode == "forms") {
        Model full(BITNET_2B4T, 300, 10);
        for (int tokens : {2, 3, 4, 6, 8}) compare_forms(gpu, full, tokens);
    }
    if (mode == "one") {
        small_tokens_agree(gpu);
        token_agrees(gpu);
        for (const Shape& shape : {BITNET_2B4T, over_bytes()}) {
            if (argc > 4 && !shape.bytes) continue;
            Model full(shape, 1280, 10);
            measure_token(gpu, full, 128);
            measure_token(gpu, full, 1024);
        }
    }
    if (mode == "int8") {
        small_bytes_suite(gpu);
        bytes_agree(gpu);
    }
    if (mode == "layers") {
        token_agrees(gpu);
        layers_agree(gpu);
        bytes_agree(gpu);
    }
    if (mode != "" && mode != "quick") return failures > 0;
    small_suite(gpu);
    if (mode == "quick" || failures) return failures > 0;
    token_agrees(gpu);
    layers_agree(gpu);
    bytes_agree(gpu);
    Model full(BITNET_2B4T, 1280, 10);
    steps_agree(gpu, full, {130}, 2, false);
    measure_token(gpu, full, 128);
    measure_token(gpu, full, 1024);
    for (int tokens : {8, 32}) measure(gpu, full, tokens, 128);
    measure_decode(gpu, {"8", "32", "64", "128", "256", "8@1024", "32@1024", "32/int8", "128/int8", "8@1024/int8", "32@1024/int8"});
    prompts_agree(gpu);
    measure_prompts(gpu, "");
    measure(gpu, full, 8, 1024);
    return failures > 0;
}
