// The machine's CPUs, and which of them a lane moves to.
#pragma once
#include <sched.h>

#include "native.h"

// For each CPU below CPU_SETSIZE the lowest one of its core: CPUs of one core share its arithmetic.
// Itself where the kernel does not tell. Read once a process.
const int32_t* cores_of_cpus();

// Where a lane goes that is on the CPU `from` together with another one: to the next of the `allowed`
// CPUs on whose core none is `taken`, else to the next that is not taken itself, else nowhere. From
// its own on, since pools of several processes would else meet on the first.
SHOAL_API int32_t shoal_apart(const int32_t* cores, const cpu_set_t* allowed,
                              const cpu_set_t* taken, int32_t from);
