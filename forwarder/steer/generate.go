package steer

// The object is built for little-endian targets only, as everything Sluice runs on is; on another architecture the
// package does not compile. The two -idirafter folders are where Debian keeps asm/types.h on amd64 and arm64.
//
//go:generate go tool -modfile=../../tools/go.mod bpf2go -cc clang-14 -target bpfel -tags linux -type counters -type shed_count -type shed_value -type target -type service -type port_range -type fast_state -type slot_count -cflags "-O2 -mcpu=v3 -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" steer bpf/steer.c
