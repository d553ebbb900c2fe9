// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// DirsVariable is the environment variable that lists the directories from which tokens may be read, in the format of PATH.
// Only whoever registers the plugin can set it, so whoever writes targets cannot make the engine read other files.
const DirsVariable = "OIDCEXCHANGE_TOKEN_DIRS"

// file is a token below one of the directories.
type file struct {
	dir, name string // name is the path below dir
	audience  string
	now       func() time.Time
}

func openFile(c Config) (*Source, error) {
	if c.TokenDirs == "" {
		return nil, fmt.Errorf("token_file: the plugin may read no files; register it with the directories that hold tokens: vault plugin register -env=%s=<directory> …", DirsVariable)
	}
	if !plain(c.TokenFile) {
		return nil, errors.New("token_file: want an absolute path without '.', '..' and double slashes")
	}
	for n, dir := range filepath.SplitList(c.TokenDirs) {
		if !plain(dir) {
			return nil, fmt.Errorf("token_file: entry %d of the plugin's %s is no absolute path below /, without '.', '..' and trailing slash; register the plugin anew", n+1, DirsVariable)
		}
	}
	for _, dir := range filepath.SplitList(c.TokenDirs) {
		if name, below := strings.CutPrefix(c.TokenFile, dir+string(filepath.Separator)); below {
			f := &file{dir: dir, name: name, audience: c.Audience, now: c.Now}
			return &Source{kind: File, fetch: f.token}, nil
		}
	}
	return nil, fmt.Errorf("token_file: is below none of the directories in the plugin's %s", DirsVariable)
}

// plain refuses a path that is not in its plain spelling, so that paths can be compared without reading the file system.
func plain(path string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && filepath.Dir(path) != path
}

func (f *file) token(context.Context) (string, error) {
	text, err := f.read()
	if err != nil {
		return "", err
	}
	token := strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	if _, err := fit(token, f.audience, f.now()); err != nil {
		return "", err
	}
	return token, nil
}

// read opens the file below its directory and nowhere else. Symlinks that stay inside are followed: Kubernetes replaces
// all files of a volume at once by pointing one anew.
func (f *file) read() (string, error) {
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return "", errors.New("its directory cannot be opened")
	}
	defer root.Close()
	// Without O_NONBLOCK the open of a pipe would wait for a writer.
	opened, err := root.OpenFile(f.name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch { // the errors' own texts hold the path
	case errors.Is(err, fs.ErrNotExist):
		return "", errors.New("there is no such file")
	case errors.Is(err, fs.ErrPermission):
		return "", errors.New("the plugin's user may not read the file")
	case err != nil:
		return "", errors.New("the file cannot be opened, or leads out of its directory")
	}
	defer opened.Close()
	if info, err := opened.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.New("it is no regular file")
	}
	text, err := egress.ReadAll(opened, maxTokenBytes)
	switch {
	case errors.Is(err, egress.ErrTooLarge):
		return "", fmt.Errorf("the file is larger than %d bytes", maxTokenBytes)
	case err != nil:
		return "", errors.New("reading the file ended early")
	}
	return string(text), nil
}
