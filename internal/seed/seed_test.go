package seed

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seed")
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

// A seed is the SHA-256 of what is in the file, but for line ends at its end.
func TestRead(t *testing.T) {
	for content, hashed := range map[string]string{
		"0123456789abcdef":          "0123456789abcdef",
		"0123456789abcdef\r\n\n":    "0123456789abcdef",
		"\n0123456789abcdef ":       "\n0123456789abcdef ",
		strings.Repeat("\x00", Max): strings.Repeat("\x00", Max),
	} {
		seed, mode, err := Read(write(t, content))
		if err != nil || seed != sha256.Sum256([]byte(hashed)) || mode.Perm() != 0o640 {
			t.Errorf("%.20q: equal %t, mode %v, %v", content, seed == sha256.Sum256([]byte(hashed)), mode, err)
		}
	}
}

// Errors are without the path, which whoever asked puts in front.
func TestReadErrors(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		write(t, strings.Repeat("x", Min-1)+"\n"): "15 bytes",
		write(t, strings.Repeat("x", Max)+"\n"):   "more than 4096 bytes",
		filepath.Join(dir, "none"):                "no such file or directory",
		dir:                                       "not a regular file",
		"/dev/zero":                               "not a regular file",
	} {
		if _, _, err := Read(path); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if _, _, err := Read(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not fs.ErrNotExist", err)
	}
}
