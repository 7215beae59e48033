package catalog

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Unsound returns the records that are, by their keys in order.
func (c *Catalog) Unsound() []Unsound {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []Unsound
	for _, key := range slices.Sorted(maps.Keys(c.unsound)) {
		out = append(out, c.unsound[key])
	}
	return out
}

// Spare says what may belong to an unsound record: it counts as needed until the record is replaced or dropped.
func (c *Catalog) Spare(key string, parts []digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.unsound[key]; !ok {
		return
	}
	c.unspare(key)
	c.spared[key] = parts
	for _, d := range parts {
		c.uses[d]++
	}
}

// Spared tells whether it is known what belongs to each unsound record.
func (c *Catalog) Spared() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.spared) == len(c.unsound)
}

// unspare is the end of Spare. The caller holds the lock.
func (c *Catalog) unspare(key string) {
	for _, d := range c.spared[key] {
		if c.uses[d]--; c.uses[d] == 0 {
			delete(c.uses, d)
		}
	}
	delete(c.spared, key)
}

// forget says that the record at a key is not unsound, or no more. The caller holds the lock.
func (c *Catalog) forget(key string) {
	c.unspare(key)
	delete(c.unsound, key)
}

// findUnsound looks for an image whose record is unsound by its ID, or says err. The caller holds the lock.
func (c *Catalog) findUnsound(name string, err error) (Image, error) {
	for _, key := range []string{name, "sha256:" + name} {
		if u, ok := c.unsound[key]; ok {
			u.Image.ID = digest.Digest(key)
			return u.Image, nil
		}
	}
	return Image{}, err
}

// unclaimed is an image without the tags that another has got. The caller holds the lock.
func (c *Catalog) unclaimed(img Image) Image {
	img.Tags = slices.DeleteFunc(slices.Clone(img.Tags), func(tag string) bool {
		return slices.ContainsFunc(c.named[tag], func(id digest.Digest) bool { return id != img.ID })
	})
	return img
}

// Replace writes an image in the place of the record at a key, unsound or not, with the names that it has, but for tags that another
// image has got. It does nothing if there is no record any more.
func (c *Catalog) Replace(ctx context.Context, key string, img Image) error {
	leave, err := c.write(ctx)
	if err != nil {
		return err
	}
	defer leave()
	c.mu.RLock()
	_, unsound := c.unsound[key]
	_, sound := c.images[digest.Digest(key)]
	_, other := c.images[img.ID]
	img = c.unclaimed(img)
	c.mu.RUnlock()
	if !unsound && !sound {
		return nil
	}
	stray := key != img.ID.String()
	if !stray || !other { // else it has a record of its own
		if err := c.table.Put(ctx, img.ID.String(), stored{Image: img}); err != nil {
			return fmt.Errorf("replace record %s: %w", key, err)
		}
	}
	if stray {
		if err := c.table.Delete(ctx, key); err != nil {
			return fmt.Errorf("replace record %s: %w", key, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !stray || !other {
		c.set(img)
	}
	c.forget(key)
	return nil
}
