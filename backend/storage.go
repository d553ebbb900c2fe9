// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"
)

// table keeps the records of one kind, each in an envelope that says which version of the kind wrote it. A record of a
// newer version is refused: dropping the fields that this version does not know could widen a policy.
type table[T any] struct {
	prefix   string
	upgrades []func(json.RawMessage) (json.RawMessage, error) // upgrades[i] turns version i+1 into version i+2
	defaults func() T
}

type envelope struct {
	Version int             `json:"version"`
	Record  json.RawMessage `json:"record"`
}

func (t table[T]) version() int { return len(t.upgrades) + 1 }

// get returns nil if there is no such record. It treats an invalid name as absent, because Vault's storage returns errors for
// some of them.
func (t table[T]) get(ctx context.Context, s logical.Storage, name string) (*T, error) {
	if checkName("name", name) != nil {
		return nil, nil
	}
	raw, err := s.Get(ctx, t.prefix+name)
	if err != nil {
		return nil, storageError(err)
	}
	if raw == nil {
		return nil, nil
	}
	record, err := t.decode(raw.Value)
	if err != nil {
		return nil, storageError(fmt.Errorf("reading %s%s: %w", t.prefix, name, err))
	}
	return record, nil
}

func (t table[T]) has(ctx context.Context, s logical.Storage, name string) (bool, error) {
	record, err := t.get(ctx, s, name)
	return record != nil, err
}

func (t table[T]) decode(value []byte) (*T, error) {
	var e envelope
	if err := json.Unmarshal(value, &e); err != nil {
		return nil, fmt.Errorf("decoding the record's envelope: %w", err)
	}
	if e.Version < 1 || e.Version > t.version() {
		return nil, fmt.Errorf("record has version %d; this plugin knows 1 to %d, so run the plugin that wrote it", e.Version, t.version())
	}
	for _, upgrade := range t.upgrades[e.Version-1:] {
		var err error
		if e.Record, err = upgrade(e.Record); err != nil {
			return nil, fmt.Errorf("upgrading the record: %w", err)
		}
	}
	record := t.new()
	if err := decodeJSON(e.Record, &record); err != nil {
		return nil, fmt.Errorf("decoding the record: %w", err)
	}
	return &record, nil
}

func (t table[T]) new() T {
	if t.defaults != nil {
		return t.defaults()
	}
	var zero T
	return zero
}

func (t table[T]) put(ctx context.Context, s logical.Storage, name string, record *T) error {
	value, err := json.Marshal(struct {
		Version int `json:"version"`
		Record  *T  `json:"record"`
	}{t.version(), record})
	if err != nil {
		return storageError(fmt.Errorf("encoding %s%s: %w", t.prefix, name, err))
	}
	if err := s.Put(ctx, &logical.StorageEntry{Key: t.prefix + name, Value: value}); err != nil {
		return storageError(err)
	}
	return nil
}

func (t table[T]) delete(ctx context.Context, s logical.Storage, name string) error {
	if err := s.Delete(ctx, t.prefix+name); err != nil {
		return storageError(err)
	}
	return nil
}

func (t table[T]) list(ctx context.Context, s logical.Storage) ([]string, error) {
	names, err := s.List(ctx, t.prefix)
	if err != nil {
		return nil, storageError(err)
	}
	return names, nil
}

// cache keeps values made from stored records until those change. Its values are shared and must not be modified.
type cache[V any] struct {
	mu         sync.RWMutex
	items      map[string]V
	generation uint64  // rises with each drop, so that a value loaded before a concurrent write is not kept
	kept       func(V) // if not nil, called for each value that the cache keeps
	dropped    func(V) // if not nil, called for each value that it drops
}

// get returns the cached value, or loads it. A load that yields ok == false (no such record) is not kept.
func (c *cache[V]) get(name string, load func() (v V, ok bool, err error)) (V, bool, error) {
	c.mu.RLock()
	v, ok := c.items[name]
	generation := c.generation
	c.mu.RUnlock()
	if ok {
		return v, true, nil
	}
	v, ok, err := load()
	if err != nil || !ok {
		return v, false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.generation == generation {
		if first, raced := c.items[name]; raced {
			return first, true, nil // all must share one value: an issuer's verifier holds the keys and limits how often they are fetched
		}
		if c.items == nil {
			c.items = map[string]V{}
		}
		c.items[name] = v
		if c.kept != nil {
			c.kept(v)
		}
	}
	return v, true, nil
}

func (c *cache[V]) drop(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation++
	if v, ok := c.items[name]; ok && c.dropped != nil {
		c.dropped(v)
	}
	delete(c.items, name)
}

func (c *cache[V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation++
	for _, v := range c.items {
		if c.dropped != nil {
			c.dropped(v)
		}
	}
	c.items = nil
}
