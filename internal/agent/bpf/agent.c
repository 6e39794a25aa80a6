// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// The agent's programs, in one object so that they share their maps: decap.h, with accept.h, at tc ingress, clamp.h at tc
// egress.

#include "common.h"
#include "decap.h"
#include "clamp.h"

// The kernel knows no "Apache" licence string; loaded into it, the programs are used under their other licence.
char _license[] SEC("license") = "GPL";
