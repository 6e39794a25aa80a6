//go:build linux

package testenv

import (
	"fmt"
	"os"
	"os/exec"
)

// Build builds programs, as users build them, into a new temporary directory, which the caller removes. It takes their
// packages as the go command does, from the working directory of the test on.
func Build(packages ...string) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "sluice-bin-"); err != nil {
		return "", err
	}
	build := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", dir}, packages...)...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return "", fmt.Errorf("build the programs under test: %w\n%s", err, out)
	}
	return dir, nil
}
