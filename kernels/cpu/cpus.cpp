#include "cpus.h"

#include <stdio.h>

#include <array>

namespace {

int32_t core_of(int32_t cpu) {
    char path[80];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE* list = fopen(path, "re");
    int32_t lowest;
    bool told = list && fscanf(list, "%d", &lowest) == 1;
    if (list) fclose(list);
    return told ? lowest : cpu;
}

}  // namespace

const int32_t* cores_of_cpus() {
    static const auto found = [] {
        std::array<int32_t, CPU_SETSIZE> cores;
        for (int32_t cpu = 0; cpu < CPU_SETSIZE; cpu++) cores[cpu] = core_of(cpu);
        return cores;
    }();
    return found.data();
}

int32_t shoal_apart(const int32_t* cores, const cpu_set_t* allowed, const cpu_set_t* taken,
                    int32_t from) {
    cpu_set_t busy;
    CPU_ZERO(&busy);
    for (int32_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, taken)) CPU_SET(cores[cpu], &busy);
    }
    int32_t beside = from;
    for (int32_t i = 1; i < CPU_SETSIZE; i++) {
        int32_t to = (from + i) % CPU_SETSIZE;
        if (!CPU_ISSET(to, allowed) || CPU_ISSET(to, taken)) continue;
        if (!CPU_ISSET(cores[to], &busy)) return to;
        if (beside == from) beside = to;
    }
    return beside;
}
