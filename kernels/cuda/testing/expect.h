// What a suite says, and how it counts what differs.
#pragma once

#include <cstdio>

#include "reference.h"

inline int failures = 0;

inline void expect(bool holds, const char* what) {
    std::printf("%s  %s\n", holds ? "ok    " : "FAILED", what);
    std::fflush(stdout);
    failures += !holds;
}

inline size_t different(const float* a, const float* b, size_t count) {
    size_t n = 0;
    for (size_t i = 0; i < count; i++) n += reference::bits(a[i]) != reference::bits(b[i]);
    return n;
}
