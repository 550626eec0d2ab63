// How the ranks of a node wait for each other.
#pragma once
#include <stdint.h>

#include <atomic>

// A rank's, in memory that all of them map.
struct alignas(64) Arrival {
    std::atomic<uint32_t> round;   // how often it has arrived
    std::atomic<uint32_t> asleep;  // threads of other ranks that sleep until it does
    std::atomic<int32_t> core;     // where it was then
};

void arrive(Arrival* mine, uint32_t round);

// Waits until another rank has arrived at a round. False if it never will: `pipe` has been hung up,
// and it had not arrived before; so all that wait for it are told the same.
bool await(Arrival* other, uint32_t wanted, int32_t pipe);
