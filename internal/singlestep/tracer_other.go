//go:build linux && !amd64

package singlestep

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

// Run is not there for this processor: registers are read, and the address that a function returns to is found, as on amd64.
func Run(context.Context, ...string) (*Profile, error) {
	return nil, fmt.Errorf("count instructions on %s: %w; it takes amd64", runtime.GOARCH, errors.ErrUnsupported)
}
