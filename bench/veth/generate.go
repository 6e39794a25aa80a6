package veth

// Little-endian targets only, like the product's own programs; see forwarder/steer.
//
//go:generate go tool -modfile=../../tools/go.mod bpf2go -cc clang-14 -target bpfel -tags linux -cflags "-O2 -mcpu=v3 -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" reflect bpf/reflect.c
