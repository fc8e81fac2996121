// bfloat16, the upper half of a float: widened wherever it is computed with, rounded to the nearest where it is stored.
#pragma once

#include <cstdint>
#include <cstring>

constexpr uint32_t NOT_A_NUMBER = 0x7FC0;

// The upper half of a float's bits, or of many floats'; ties go to the even one.
template <class Bits>
static inline Bits nearest(Bits bits) {
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

struct BFloat16 {
    uint16_t bits;

    BFloat16() = default;
    BFloat16(float value) { *this = value; }

    BFloat16& operator=(float value) {
        uint32_t wide;
        std::memcpy(&wide, &value, 4);
        bits = static_cast<uint16_t>(value == value ? nearest(wide) : NOT_A_NUMBER);
        return *this;
    }

    operator float() const {
        const uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
};
