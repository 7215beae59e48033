// Package catalog keeps the records of a node's images: which there are, by which names, and what they need of the disk.
//
// A tag names one image at a time, a digest of a repository may name several. An image that is not whole is hidden: only
// those who mend or remove it see it, but what is left of it counts as needed. So does what belongs to a record that is not as it
// was written, as far as Spare says what that is.
package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/registry/names"
	"criserver/pkg/record"
)

var (
	// ErrNotFound: no image of that name or ID.
	ErrNotFound = errors.New("image not found")
	// ErrInvalid: a name that cannot be used.
	ErrInvalid = document.ErrInvalid
)

// Catalog holds the records. Its methods may be called at the same time.
type Catalog struct {
	table *record.Table[stored]
	// writing is held, by a value in it, while records are written, so that they are in the order of memory.
	writing chan struct{}

	mu     sync.RWMutex // guards what follows; never held across a call to the disk
	images map[digest.Digest]Image
	hidden map[digest.Digest]bool
	// named are the images that a name names.
	named map[string][]digest.Digest
	uses  map[digest.Digest]int // how many images need a part
	// unsound are the records that are, by key, spared what may belong to them.
	unsound map[string]Unsound
	spared  map[string][]digest.Digest
}

// Open reads the records in the database, which must be synced (record.Options) and stays the caller's. Those that are not as
// they were written are Unsound.
func Open(ctx context.Context, db *record.DB) (*Catalog, error) {
	table, err := record.NewTable[stored](ctx, db, "images")
	if err != nil {
		return nil, fmt.Errorf("open image records: %w", err)
	}
	records, err := table.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("read image records: %w", err)
	}
	c := &Catalog{
		table: table, writing: make(chan struct{}, 1), images: map[digest.Digest]Image{}, hidden: map[digest.Digest]bool{},
		named: map[string][]digest.Digest{}, uses: map[digest.Digest]int{}, unsound: map[string]Unsound{}, spared: map[string][]digest.Digest{},
	}
	images := make(map[string]Image, len(records))
	for key, s := range records {
		s.ConfigBlob = cmp.Or(s.ConfigBlob, s.ID) // of a record that was written before there were artifacts
		if u, bad := s.unsound(key); bad {
			c.unsound[key] = u
		} else {
			images[key] = s.Image
		}
	}
	tagOnce(images)
	for _, img := range images {
		c.set(img)
	}
	return c, nil
}

// tagOnce leaves each tag with the image that was pulled last: earlier versions wrote the move of a tag in two steps.
func tagOnce(images map[string]Image) {
	owners := map[string]Image{}
	for _, img := range images {
		for _, tag := range img.Tags {
			if owner, ok := owners[tag]; !ok || img.Pulled.After(owner.Pulled) {
				owners[tag] = img
			}
		}
	}
	for key, img := range images {
		img.Tags = slices.DeleteFunc(img.Tags, func(tag string) bool { return owners[tag].ID != img.ID })
		images[key] = img
	}
}

// set puts an image in the place of what was known of it. The caller holds the lock.
func (c *Catalog) set(img Image) {
	c.unset(img.ID)
	c.images[img.ID] = img
	for _, name := range img.names() {
		c.named[name] = append(c.named[name], img.ID)
	}
	for _, d := range img.Parts() {
		c.uses[d]++
	}
}

// unset takes an image out; an unknown one is none. The caller holds the lock.
func (c *Catalog) unset(id digest.Digest) {
	img, ok := c.images[id]
	if !ok {
		return
	}
	delete(c.images, id)
	for _, name := range img.names() {
		if left := slices.DeleteFunc(c.named[name], func(d digest.Digest) bool { return d == id }); len(left) > 0 {
			c.named[name] = left
		} else {
			delete(c.named, name)
		}
	}
	for _, d := range img.Parts() {
		if c.uses[d]--; c.uses[d] == 0 {
			delete(c.uses, d)
		}
	}
}

// List returns the images that are not hidden, in no order. The caller must not change what they refer to.
func (c *Catalog) List() []Image {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]Image, 0, len(c.images))
	for id, img := range c.images {
		if !c.hidden[id] {
			out = append(out, img)
		}
	}
	return out
}

// All returns all images, hidden ones too.
func (c *Catalog) All() map[digest.Digest]Image {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return maps.Clone(c.images)
}

// Hidden returns the images that are hidden.
func (c *Catalog) Hidden() map[digest.Digest]Image {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := map[digest.Digest]Image{}
	for id := range c.hidden {
		out[id] = c.images[id]
	}
	return out
}

// Needs tells whether an image needs a layer or blob, also a hidden one. It does not block on the disk.
func (c *Catalog) Needs(d digest.Digest) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.uses[d] > 0
}

// Hide says whether an image is whole; it tells whether that is news.
func (c *Catalog) Hide(id digest.Digest, hide bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.images[id]; !ok || c.hidden[id] == hide {
		return false
	}
	if hide {
		c.hidden[id] = true
	} else {
		delete(c.hidden, id)
	}
	return true
}

// minPrefix is the shortest prefix of an ID that is taken for one.
const minPrefix = 6

// Find looks an image up that is not hidden: by ID, by what the name may stand for, the first that names one, or by a unique
// prefix of its ID. ErrNotFound; ErrInvalid: the prefix is not unique.
func (c *Catalog) Find(name string, refs []names.Reference) (Image, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.find(name, refs, false)
}

// find looks among the hidden images or among the others. The caller holds the lock.
func (c *Catalog) find(name string, refs []names.Reference, hidden bool) (Image, error) {
	algorithm, hex, named := strings.Cut(name, ":")
	if !named || !digest.Algorithm(algorithm).Available() {
		algorithm, hex = "", name
	}
	for _, id := range []digest.Digest{digest.Digest(name), digest.Digest("sha256:" + name)} {
		if img, ok := c.images[id]; ok && c.hidden[id] == hidden {
			return img, nil
		}
	}
	for _, ref := range refs {
		for _, id := range c.named[ref.String()] {
			if c.hidden[id] == hidden {
				return c.images[id], nil
			}
		}
	}
	var found []Image
	if len(hex) >= minPrefix && strings.Trim(hex, "0123456789abcdef") == "" {
		for id, img := range c.images {
			if c.hidden[id] == hidden && strings.HasPrefix(id.Encoded(), hex) && strings.HasPrefix(id.String(), algorithm) {
				found = append(found, img)
			}
		}
	}
	switch len(found) {
	case 0:
		return Image{}, fmt.Errorf("%q: %w", name, ErrNotFound)
	case 1:
		return found[0], nil
	}
	return Image{}, fmt.Errorf("%w: %d images have IDs that begin with %s", ErrInvalid, len(found), hex)
}

// Drop takes an image out, a hidden one if no other has the name, and returns what it was. ErrNotFound.
func (c *Catalog) Drop(ctx context.Context, name string, refs []names.Reference) (Image, error) {
	leave, err := c.write(ctx)
	if err != nil {
		return Image{}, err
	}
	defer leave()
	c.mu.RLock()
	img, err := c.find(name, refs, false)
	if errors.Is(err, ErrNotFound) {
		img, err = c.find(name, refs, true)
	}
	if errors.Is(err, ErrNotFound) {
		img, err = c.findUnsound(name, err)
	}
	c.mu.RUnlock()
	if err != nil {
		return img, err
	}
	if err := c.table.Delete(ctx, img.ID.String()); err != nil {
		return img, fmt.Errorf("remove image %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unset(img.ID)
	c.forget(img.ID.String())
	delete(c.hidden, img.ID)
	return img, nil
}

// Name is a name that an image gets.
type Name struct {
	Ref names.Reference
	// Resolved is the digest that the reference stands for: of the image's manifest, or of an index that has it. It
	// becomes a name too, if it is not empty.
	Resolved digest.Digest
}

// Put makes an image visible under its old names and new ones, which those lose that had them: all on the disk in one step.
func (c *Catalog) Put(ctx context.Context, img Image, added ...Name) error {
	leave, err := c.write(ctx)
	if err != nil {
		return err
	}
	defer leave()
	changed := c.renamed(img, added)
	records := make(map[string]stored, len(changed))
	for id, img := range changed {
		records[id.String()] = stored{Image: img}
	}
	if err := c.table.PutAll(ctx, records); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range changed {
		c.set(other)
		c.forget(other.ID.String())
	}
	delete(c.hidden, img.ID)
	return nil
}

// renamed returns the image with its names, old and new, and those that lose one.
func (c *Catalog) renamed(img Image, added []Name) map[digest.Digest]Image {
	c.mu.RLock()
	defer c.mu.RUnlock()
	old := c.images[img.ID]
	if u := c.unsound[img.ID.String()]; u.Named && u.ID() == img.ID {
		old = c.unclaimed(u.Image)
	}
	img.Tags, img.Digests = slices.Clone(old.Tags), slices.Clone(old.Digests)
	changed := map[digest.Digest]Image{}
	for _, n := range added {
		if n.Resolved != "" {
			img.Digests = insert(img.Digests, n.Ref.WithDigest(n.Resolved).String())
		}
		if n.Ref.Tag() == "" {
			continue
		}
		tag := n.Ref.String()
		img.Tags = insert(img.Tags, tag)
		for _, id := range c.named[tag] {
			if id == img.ID {
				continue
			}
			other, ok := changed[id]
			if !ok {
				other = c.images[id]
			}
			changed[id] = other.without(tag)
		}
	}
	changed[img.ID] = img
	return changed
}

// write waits for the turn to write.
func (c *Catalog) write(ctx context.Context) (leave func(), err error) {
	select {
	case c.writing <- struct{}{}:
		return func() { <-c.writing }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// insert puts a value into a sorted list, once.
func insert(list []string, v string) []string {
	i, found := slices.BinarySearch(list, v)
	if found {
		return list
	}
	return slices.Insert(list, i, v)
}
